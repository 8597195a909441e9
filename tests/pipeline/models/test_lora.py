"""LoRA on a language model is W + (alpha / rank) B A, changes nothing at first, and leaves the frozen weights alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Recipe, parse_recipe
from pipeline.models.fingerprint import fingerprint
from pipeline.models.language import LanguageTower, build_language, checkpoint_layers
from pipeline.models.lora import add_lora, merge_lora
from pipeline.tokens import Tokens, pad_tokens
from tests.support.tiny_towers import tiny_recipe

KINDS = {"opt": ("q_proj", "v_proj"), "t5": ("q", "v")}  # and what peft chooses for the family
LAYERS = {"opt": 4, "t5": 12}  # two of each attention: OPT has 2, the T5 2 in its encoder and 4 in its decoder
PAD = 0


def recipe_of(towers: Path, kind: str, precision: str = "fp32", **lora: Any) -> Recipe:
    content: dict[str, Any] = tiny_recipe(towers, towers / "none.json", towers / "run", 2, kind)
    content["language"]["lora"] = {"rank": 3, "alpha": 12.0, "dropout": 0.0} | lora
    content["qformer"]["precision"] = precision
    return parse_recipe(content)


def tower_of(recipe: Recipe) -> tuple[LanguageTower, nn.Module]:
    """With large random matrices in the place of fresh ones."""
    assert recipe.language is not None
    tower = build_language(recipe.language, "cpu")
    tree = add_lora(tower.model, recipe, "cpu")
    assert tree is not None
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return tower, tree


def inputs(width: int) -> tuple[Tensor, Tokens, Tokens]:
    generator = torch.Generator().manual_seed(5)
    prompts_BQH = torch.randn((2, 3, width), generator=generator, dtype=torch.float64).requires_grad_()
    return prompts_BQH, pad_tokens([[3, 4], [5, 6, 7]], PAD), pad_tokens([[8, 9, 10, 1], [11, 1]], PAD)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_plain_sum_of_weights(towers: Path, kind: str) -> None:
    recipe = recipe_of(towers, kind)
    tower, tree = tower_of(recipe)
    tower.model.double()
    prompts, context, target = inputs(tower.width)
    loss = tower.loss_sum(prompts, context, target)
    names = [name for name, _ in tree.named_parameters()]
    gradients = torch.autograd.grad(loss, [prompts, *tree.parameters()])

    assert recipe.language is not None
    plain = build_language(recipe.language, "cpu")
    plain.model.double()
    trained = {name: p.detach().clone().requires_grad_() for name, p in tree.named_parameters()}
    layers = sorted({name.rpartition(".")[0].rpartition(".")[0] for name in trained})
    assert len(layers) == LAYERS[kind] and all(name.endswith(KINDS[kind]) for name in layers)
    own = dict(plain.model.named_parameters())
    sums = {
        f"{name}.weight": own[f"{name}.weight"] + 12.0 / 3 * trained[f"{name}.B.weight"] @ trained[f"{name}.A.weight"]
        for name in layers
    }
    model, plain.model = plain.model, lambda **given: torch.func.functional_call(model, sums, (), given)
    plain.model.config, plain.model.prepare_decoder_input_ids_from_labels = (
        model.config,
        getattr(model, "prepare_decoder_input_ids_from_labels", None),
    )
    expected = plain.loss_sum(prompts, context, target)
    wanted = torch.autograd.grad(expected, [prompts, *(trained[name] for name in names)])
    assert abs(loss.item() - expected.item()) < 1e-6
    for name, found, reference in zip(["prompts", *names], gradients, wanted, strict=True):
        assert reference.abs().max() > 0, name
        torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_lora_changes_no_loss_and_merged_lora_is_what_was_trained(towers: Path, kind: str) -> None:
    recipe = recipe_of(towers, kind)
    assert recipe.language is not None
    tower = build_language(recipe.language, "cpu")
    before, names = fingerprint(tower.model), list(tower.model.state_dict())
    prompts, context, target = inputs(tower.width)
    plain = tower.loss_sum(prompts.float(), context, target)
    tree = add_lora(tower.model, recipe, "cpu")
    assert tree is not None and tower.loss_sum(prompts.float(), context, target).equal(plain)
    assert {p.dtype for p in tree.parameters()} == {torch.float32}
    assert {id(p) for p in tower.model.parameters() if p.requires_grad} == {id(p) for p in tree.parameters()}
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.add_(0.2)
    changed = tower.loss_sum(prompts.float(), context, target)
    assert abs(changed - plain) > 1e-3 and fingerprint(tower.model) == before
    merge_lora(tower.model)
    assert list(tower.model.state_dict()) == names and fingerprint(tower.model) != before
    torch.testing.assert_close(tower.loss_sum(prompts.float(), context, target), changed, rtol=1e-5, atol=1e-5)


def test_layers_that_are_computed_again_draw_the_same_dropout(towers: Path) -> None:
    gradients = []
    for again in (False, True):
        tower, tree = tower_of(recipe_of(towers, "opt", dropout=0.5, targets=["q_proj", "fc1", "fc2"]))
        if again:
            checkpoint_layers(tower.model)
        tree.train()
        prompts, context, target = inputs(tower.width)
        torch.manual_seed(0)
        loss = tower.loss_sum(prompts.float(), context, target)
        gradients.append(torch.autograd.grad(loss, list(tree.parameters())))
    for once, twice in zip(*gradients, strict=True):
        assert once.equal(twice)
    tree.eval()
    assert not torch.equal(tower.loss_sum(prompts.float(), context, target), loss)  # there was dropout


def test_products_are_in_the_bridges_precision(towers: Path) -> None:
    seen = []
    tower, tree = tower_of(recipe_of(towers, "opt", precision="bf16"))
    for module in tree.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    prompts, context, target = inputs(tower.width)
    tower.loss_sum(prompts.float(), context, target).backward()
    assert set(seen) == {torch.bfloat16} and len(seen) == 2 * LAYERS["opt"]
    assert {p.grad.dtype for p in tree.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("targets", [["nothing"], ["embed_tokens"]])
def test_targets_that_are_no_linear_layers_are_one_line(towers: Path, targets: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^language\.lora\.targets \['\w+'\]: .*; name") as error:
        tower_of(recipe_of(towers, "opt", targets=targets))
    assert "\n" not in str(error.value)


QUIET = """
import sys
from pathlib import Path
from pipeline.models.language import build_language
from pipeline.models.lora import add_lora
from tests.pipeline.models.test_lora import recipe_of
recipe = recipe_of(Path(sys.argv[1]), "opt")
add_lora(build_language(recipe.language, "cpu").model, recipe, "cpu")
assert "bitsandbytes" in sys.modules
"""


def test_nothing_is_said_of_kernels_that_it_does_not_need(towers: Path) -> None:
    """peft imports bitsandbytes, once in a process."""
    done = subprocess.run([sys.executable, "-c", QUIET, str(towers)], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr
