"""Generation through the frozen language models: padding, lengths, stopping; and what a folder must hold."""

from pathlib import Path

import pytest
import torch

from pipeline.config import Language
from pipeline.models.language import CausalTower, Decoding, LanguageTower, build_language
from pipeline.models.loading import not_loaded
from pipeline.tokens import Tokens

PROMPTS = ["question : 1 ?", "a photo of", "the colour is number 2 , a dark red picture : answer", ""]


def soft_prompts(language: LanguageTower, count: int) -> torch.Tensor:
    return torch.randn(count, 5, language.width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("blind", [False, True])
def test_a_batch_of_unequal_prompts_generates_as_one_by_one(
    language: LanguageTower, num_beams: int, blind: bool
) -> None:
    decoding = Decoding(num_beams=num_beams, max_new_tokens=8, min_new_tokens=3)
    prompts = None if blind else soft_prompts(language, len(PROMPTS))
    together = language.generate(prompts, PROMPTS, decoding)
    alone = [
        language.generate(None if prompts is None else prompts[index : index + 1], [text], decoding)[0]
        for index, text in enumerate(PROMPTS)
    ]
    assert together == alone
    assert len(set(together)) > 1  # the texts matter


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("blind", [False, True])
def test_lengths_count_new_tokens_alone(
    language: LanguageTower, monkeypatch: pytest.MonkeyPatch, length: int, blind: bool
) -> None:
    made: list[torch.Tensor] = []
    monkeypatch.setattr(language.tokenizer, "batch_decode", lambda rows, **_options: made.append(rows) or [""])
    prompts = None if blind else soft_prompts(language, 1)
    language.generate(prompts, ["a picture of the colour red"], Decoding(1, length, length))
    start = 1 if language.kind == "seq2seq" else 0  # the decoder's start token is no new one
    assert made[0].shape == (1, start + length)


def test_opt_stops_at_the_end_text(towers: Path) -> None:
    tower = build_language(Language(name=str(towers / "opt"), precision="fp32"), "cpu")
    assert isinstance(tower, CausalTower)
    assert tower.tokenizer("\n", add_special_tokens=False).input_ids == [tower.end_token_id]

    def words() -> list[str]:
        return tower.generate(None, ["a photo of"], Decoding(1, 12, 1))[0].split()

    free = words()
    tower.end_token_id = tower.tokenizer(free[2], add_special_tokens=False).input_ids[0]
    assert words() == free[: free.index(free[2]) + 1]


def test_t5_in_fp16_is_refused_with_the_reason(towers: Path) -> None:
    with pytest.raises(ValueError, match=r"fp16.*overflow.*bf16") as error:
        build_language(Language(name=str(towers / "t5"), precision="fp16"), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tower", ["t5", "opt"])
def test_a_tower_holds_the_recipes_precision(towers: Path, tower: str) -> None:
    language = build_language(Language(name=str(towers / tower), precision="bf16"), "cpu")
    assert {parameter.dtype for parameter in language.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["t5", "opt"])
def test_checkpointed_layers_give_the_same_bits_with_less_kept(towers: Path, family: str) -> None:
    losses, gradients, kept = [], [], []
    ids = torch.randint(3, 20, (4, 9), generator=torch.Generator().manual_seed(0))
    text = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    for checkpointing in (False, True):
        settings = Language(name=str(towers / family), precision="fp32", activation_checkpointing=checkpointing)
        tower = build_language(settings, "cpu")
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randn(4, 6, tower.width, generator=generator, requires_grad=True)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):  # noqa: B023
            loss = tower.loss_sum(prompts, text, text)
        gradients += torch.autograd.grad(loss, prompts)
        losses.append(loss.detach())
        kept.append(sum(sizes))
        assert tower.generate(prompts.detach(), ["a"] * 4, Decoding(2, 3)) is not None
    assert torch.equal(losses[0], losses[1]) and torch.equal(gradients[0], gradients[1])
    assert kept[1] < kept[0] / 2


def test_a_package_that_is_missing_is_named_and_no_folder_blamed(towers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations.accelerate as placing

    monkeypatch.setattr(placing, "is_accelerate_available", lambda: False)
    with pytest.raises(ValueError, match="the package accelerate is missing") as found:
        build_language(Language(name=str(towers / "opt"), precision="fp32"), "cpu")
    assert "damaged" not in str(found.value) and "\n" not in str(found.value)
    error = ModuleNotFoundError("No module named 'timm.layers'", name="timm.layers")
    assert "the package timm is missing" in str(not_loaded("vision.name 'x'", error))


@pytest.mark.parametrize("name", ["/nowhere/opt", "./nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_said_so(name: str) -> None:
    told = name.replace("~", str(Path.home()))
    with pytest.raises(ValueError, match=f"language.name '{told}' in fp32: there is no such folder"):
        build_language(Language(name=name, precision="fp32"), "cpu")
