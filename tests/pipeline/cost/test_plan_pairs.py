"""A plan of sequences of several pairs: the real code's arithmetic and memory, and the model's positions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Recipe, parse_recipe
from pipeline.cost.dry_run import LANGUAGE, LOGITS, DryRun, UnweightedRecipe
from pipeline.cost.flops import sample_flops
from pipeline.cost.unweighted import caption_batch, longest_lengths
from pipeline.training.parts import build_parts
from pipeline.training.task import StepPlace
from tests.support.tiny_towers import tiny_recipe

SIZE = 8


def recipe_of(towers: Path, language: str, pairs: int, **data: Any) -> Recipe:
    content: dict[str, Any] = tiny_recipe(towers, Path("none"), Path("none"), 2, language)
    content["data"] |= {"pairs_per_sequence": pairs, "max_text_tokens": 12} | data
    content["batch"] = {"global_size": SIZE, "micro_size": SIZE}
    return parse_recipe(content)


def planned(recipe: Recipe) -> DryRun:
    return UnweightedRecipe(recipe).run(SIZE, longest_lengths(recipe))


@pytest.mark.parametrize("language", ["opt", "t5"])
def test_work_and_memory_follow_the_sequences(towers: Path, language: str) -> None:
    recipe = recipe_of(towers, language, 4)
    task, _ = build_parts(recipe, "cpu", fresh=False)
    batch = caption_batch(recipe, SIZE, longest_lengths(recipe))
    flash = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)  # of CPUs, too: torch counts attention made of plain products
    with FlopCounterMode(display=False) as counted:
        task(batch, StepPlace(0, 1.0, 12, 0))["loss"].backward()
    torch.backends.cuda.enable_flash_sdp(flash)
    one, four = planned(recipe_of(towers, language, 1)), planned(recipe)
    # A T5's first decoder layer wants two of the three gradients of attention that a GPU's kernel makes.
    assert sum(four.flops.values()) == pytest.approx(counted.get_total_flops(), rel=1e-2)
    work, kept = four.flops[LANGUAGE] / one.flops[LANGUAGE], four.kept[LANGUAGE] / one.kept[LANGUAGE]
    print(f"{language}: work {work:.2f}, kept bytes {kept:.2f}")
    if language == "opt":  # the same tokens, without most BOS; attention alone has longer rows
        assert 0.9 < work < 1.5 and 0.9 < kept < 1.5 and four.flops[LOGITS] < one.flops[LOGITS]
    else:  # each pair with all before it, padded to the longest
        assert 3 < work < 6 and 3 < kept < 7 and four.flops[LOGITS] == one.flops[LOGITS]


def test_a_samples_work_is_that_of_a_whole_sequence(towers: Path) -> None:
    one, four = (sample_flops(recipe_of(towers, "t5", pairs), (4, 6))[LANGUAGE] for pairs in (1, 4))
    assert four > 2 * one


def test_a_model_with_too_few_positions_is_refused(towers: Path) -> None:
    most = 128 // 4 - 4 - 1
    UnweightedRecipe(recipe_of(towers, "opt", 4, max_text_tokens=most))
    with pytest.raises(ValueError, match=r"132 in all, and the language model has 128 positions") as refused:
        UnweightedRecipe(recipe_of(towers, "opt", 4, max_text_tokens=most + 1))
    assert "\n" not in str(refused.value)
