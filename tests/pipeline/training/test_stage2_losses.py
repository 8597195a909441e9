"""Stage 2's loss and gradients equal those of transformers' own losses on the reference's soft prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Language
from pipeline.data.batch import Batch
from pipeline.models.language import LanguageTower, build_language
from pipeline.tokens import Tokens, pad_tokens
from pipeline.training.faults import INITIAL_SCALE, STEPS_TO_GROW, LossScale
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace
from tests.reference.stage2 import causal_loss_sum, seq2seq_loss_sum, soft_prompts, transformers_causal_loss_sum
from tests.support.random_bridges import PAD, SHAPE, random_images, random_stage2

EOS = 1


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    tower = build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")
    tower.model.double()
    return tower


def texts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(3, 30, (length - 1,), generator=generator).tolist(), EOS] for length in lengths]


def batch_of(
    language: LanguageTower, lengths: list[int], prompted: list[int] | None = None
) -> tuple[Batch, list[list[int]], list[list[int]]]:
    """Texts of random tokens, with contexts of the lengths `prompted`; a seq2seq model always has some."""
    targets = texts(lengths)
    some = [1 + 2 * index for index in range(len(lengths))] if language.kind == "seq2seq" else []
    contexts = texts(prompted or some, seed=1) or [[] for _ in targets]
    images = random_images(len(lengths))
    padded = pad_tokens(contexts, PAD), pad_tokens(targets, PAD)
    return Batch(images, torch.arange(len(lengths)), *padded, 0), contexts, targets


def reference_loss(
    language: LanguageTower, weights: dict[str, Tensor], batch: Batch, contexts: Any, targets: Any
) -> Tensor:
    """The mean over all tokens of the batch, sample by sample, each with its weight."""
    losses, given = [], batch.loss_weights_A
    factors = torch.ones(len(targets)) if given is None else given
    for image, context, target, factor in zip(batch.pixels_B3SS, contexts, targets, factors, strict=True):
        prompts = soft_prompts(weights, SHAPE, image)
        if language.kind == "causal":
            losses.append(factor * causal_loss_sum(language.model, prompts, context, target))
        else:
            losses.append(factor * seq2seq_loss_sum(language.model, prompts, context, target))
    return torch.stack(losses).sum() / sum(map(len, targets))


@pytest.mark.parametrize(
    ("lengths", "prompted"),
    [
        ([1, 2, 5, 17, 32], None),
        ([9], None),
        ([1], None),
        ([3, 9, 1], [4, 4, 4]),
        ([3, 1, 9, 2], [1, 12, 5, 7]),
        ([2, 3], [8, 2]),
    ],
    ids=["1 to 32 tokens", "one text", "one token", "one prompt", "prompts of many lengths", "the longest first"],
)
def test_loss_and_every_gradient_equal_the_reference(
    language: LanguageTower, lengths: list[int], prompted: list[int] | None
) -> None:
    batch, contexts, targets = batch_of(language, lengths, prompted)
    if prompted and len(lengths) > 2:
        batch = replace(batch, loss_weights_A=torch.tensor([0.5, 1.0, 2.0, 0.0][: len(lengths)]))
    bridge = random_stage2(language.width)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in bridge.state_dict().items()}
    task = Stage2Task(bridge, nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    assert Stage2Task.num_scored_tokens(batch) == sum(lengths)
    values = task(batch, StepPlace(0, 1 / sum(lengths), max(lengths), 0))
    values["loss"].backward()
    wanted = reference_loss(language, weights, batch, contexts, targets)
    wanted.backward()
    assert float(values["loss"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    worst = 0.0
    for name, parameter in bridge.named_parameters():
        expected = weights[name].grad
        assert parameter.grad is not None and expected is not None, name
        scale, difference = float(expected.abs().max()), float((parameter.grad - expected).abs().max())
        if scale < 1e-12:  # keys' biases: softmax makes their gradient zero
            assert difference < 1e-12, name
        else:
            worst = max(worst, difference / scale)
    print(f"{language.kind}: loss {float(wanted.detach()):.6f}, largest relative difference of a gradient {worst:.1e}")
    assert worst < 1e-6


def test_the_reference_of_a_causal_model_is_transformers_own_loss(language: LanguageTower) -> None:
    if language.kind == "causal":
        prompts = torch.randn(5, language.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for target, context in zip(texts([1, 4, 11]), [[], *texts([2, 6], seed=1)], strict=True):
            found = float(causal_loss_sum(language.model, prompts, context, target))
            assert found == pytest.approx(
                float(transformers_causal_loss_sum(language.model, prompts, context, target)), rel=1e-6
            )


def test_the_language_model_gets_no_gradient_and_stays_in_evaluation(language: LanguageTower) -> None:
    batch, _, _ = batch_of(language, [3, 5])
    task = Stage2Task(random_stage2(language.width), nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    task.train()
    task(batch, StepPlace(0, 1.0, 5, 0))["loss"].backward()
    assert not language.model.training
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in language.model.parameters())
    assert not any("language" in name.split(".")[0] for name, _ in task.named_parameters())


@pytest.mark.parametrize("prompted", [None, [2, 7, 4]], ids=["no prompt", "prompts"])
def test_padding_is_hidden(language: LanguageTower, prompted: list[int] | None) -> None:
    batch, _, _ = batch_of(language, [3, 8, 5], prompted)
    prompts = torch.randn(3, 4, language.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(context: Tokens, target: Tokens) -> Tensor:
        return language.loss_sum(prompts, context, target).detach()

    before = loss(batch.context, batch.target)
    for name in ("context", "target"):
        text: Tokens = getattr(batch, name)
        if not (~text.is_token).any():
            continue
        hidden = Tokens(text.ids.masked_fill(~text.is_token, 17), text.is_token)
        shown = Tokens(text.ids.clone(), text.is_token)
        shown.ids[1, 0] = (shown.ids[1, 0] + 5) % 30
        both = {"context": batch.context, "target": batch.target}
        assert torch.equal(loss(**(both | {name: hidden})), before)
        assert not torch.equal(loss(**(both | {name: shown})), before)
    context = batch.context.padded_to(20) if batch.context.ids.numel() else batch.context
    longer = loss(context, batch.target.padded_to(40))
    torch.testing.assert_close(longer, before, rtol=1e-9, atol=0)


def test_the_head_of_a_causal_model_skips_a_prompt_that_all_rows_share(language: LanguageTower) -> None:
    if language.kind == "causal":
        prompts, widths = torch.zeros(3, 4, language.width, dtype=torch.float64), []
        handle = language.model.register_forward_hook(
            lambda _module, _in, output: widths.append(output.logits.shape[1])
        )
        for prompted in (None, [4, 4, 4], [2, 4, 3]):
            batch, _, _ = batch_of(language, [6, 3, 5], prompted)
            language.loss_sum(prompts, batch.context, batch.target)
        handle.remove()
        assert widths == [7, 7, 11]


def test_a_token_is_predicted_from_what_came_before_it_alone(language: LanguageTower) -> None:
    """Bit-identical logits up to the changed token; every later one, and the picture and context, matter."""
    batch, _, _ = batch_of(language, [6, 6, 6])
    prompts = torch.randn(3, 4, language.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen: list[Tensor] = []
    handle = language.model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.logits[:, -6:]))

    def logits(prompts_BQH: Tensor, target: Tokens) -> Tensor:
        seen.clear()
        language.loss_sum(prompts_BQH, batch.context, target)
        return seen[0].detach()

    before = logits(prompts, batch.target)
    first = 0 if language.kind == "causal" else 1  # the place of the logits that have read target token 0
    for place in range(5):
        ids = batch.target.ids.clone()
        ids[1, place] = (ids[1, place] + 5) % 30
        after = logits(prompts, Tokens(ids, batch.target.is_token))
        readers = [not torch.equal(after[1, reader], before[1, reader]) for reader in range(6)]
        assert readers == [reader >= place + first for reader in range(6)], place
        assert torch.equal(after[[0, 2]], before[[0, 2]])
    other_picture = logits(torch.cat([prompts[:1] + 1, prompts[1:]]), batch.target)
    assert torch.equal(other_picture[1:], before[1:]) and not torch.equal(other_picture[0], before[0])
    handle.remove()


def test_a_bf16_bridge_leaves_the_language_model_in_its_own_precision(towers: Path) -> None:
    language = build_language(Language(name=str(towers / "opt"), precision="fp32"), "cpu")
    batch, _, _ = batch_of(language, [3, 5])
    batch = Batch(batch.pixels_B3SS.float(), batch.image_ids_B, batch.context, batch.target, 0)
    bridge, seen = random_stage2(language.width).float(), {}
    modules = {"bridge": bridge.language_projection, "model": language.model.model.decoder.layers[0].fc1}
    for name, module in modules.items():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output.dtype}))
    task = Stage2Task(bridge, nn.Identity(), language, "bf16")  # type: ignore[arg-type]
    values = task(batch, StepPlace(0, 1.0, 5, 0))
    assert seen == {"bridge": torch.bfloat16, "model": torch.float32} and values["loss"].dtype == torch.float32


def test_the_loss_scale_keeps_gradients_that_fp16_would_lose(towers: Path) -> None:
    """Through an fp16 language model with a small weight a token, as a large batch has: against fp32 all the way."""
    found = {}
    for precision, scale in (("fp32", 1.0), ("fp16", 1.0), ("fp16", 2.0**16)):
        language = build_language(Language(name=str(towers / "opt"), precision=precision), "cpu")  # type: ignore[arg-type]
        batch, _, _ = batch_of(language, [3, 5, 9])
        batch = Batch(batch.pixels_B3SS.float(), batch.image_ids_B, batch.context, batch.target, 0)
        bridge = random_stage2(language.width).float()
        task = Stage2Task(bridge, nn.Identity(), language, "fp32")  # type: ignore[arg-type]
        assert task.loss_scale.dynamic == (precision == "fp16")
        task.loss_scale.value = scale
        values = task(batch, StepPlace(0, 1e-6, 9, 0))
        (values["loss"] * task.loss_scale.value).backward()
        gradient = bridge.language_projection.weight.grad
        assert gradient is not None
        found[precision, scale] = gradient
    wanted = found["fp32", 1.0]
    errors = {key: float((gradient - wanted).norm() / wanted.norm()) for key, gradient in found.items()}
    print(errors)
    assert errors["fp16", 2.0**16] < 0.05 < 0.2 < errors["fp16", 1.0]


def test_the_loss_scale_halves_on_a_skipped_step_and_grows_after_many_good_ones() -> None:
    scale = LossScale(INITIAL_SCALE, dynamic=True)
    scale.update(skipped=True)
    assert scale.value == INITIAL_SCALE / 2
    for _ in range(STEPS_TO_GROW):
        scale.update(skipped=False)
    assert scale.value == INITIAL_SCALE
    fixed = LossScale()
    fixed.update(skipped=True)
    assert fixed.value == 1.0
