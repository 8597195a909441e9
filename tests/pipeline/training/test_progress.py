"""A run's progress: interrupted after any step, saved and restored, it goes the same way as without interruption."""

from pathlib import Path

import pytest
import torch

from pipeline.config import Recipe, load_recipe
from pipeline.training.checkpoint import State
from pipeline.training.faults import INITIAL_SCALE, LossScale
from pipeline.training.progress import Progress

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
START = State(0, 0, 42, 2, "abc", {}, {}, {})
LOSSES = [3.0, None, 2.0, None, None, 1.0, 4.0]  # None: a skipped step


def recipe_of(*edits: str) -> Recipe:
    return load_recipe(RECIPES / "stage2_vitg_opt2.7b.yaml", ["run.steps=7", "batch.global_size=960", *edits])


def go(progress: Progress, losses: list[float | None]) -> Progress:
    """One step a loss, each an interval of its own."""
    for loss in losses:
        progress.advance(None if loss is None else {"loss": torch.tensor(loss), "corrupt_samples": torch.zeros(())})
        progress.end_interval()
    return progress


@pytest.mark.parametrize("steps", range(1, len(LOSSES)))
def test_restored_from_its_state_it_continues_as_if_nothing_had_happened(steps: int) -> None:
    recipe = recipe_of()
    whole = go(Progress(recipe, START, LossScale(INITIAL_SCALE, dynamic=True)), LOSSES)
    first = go(Progress(recipe, START, LossScale(INITIAL_SCALE, dynamic=True)), LOSSES[:steps])
    fresh_scale = LossScale(INITIAL_SCALE, dynamic=True)
    second = go(Progress(recipe, first.state(), fresh_scale), LOSSES[steps:])
    assert second.state() == whole.state()
    assert fresh_scale.value == whole.loss_scale.value == INITIAL_SCALE / 8
    assert (whole.step, whole.samples, whole.skipped) == (7, 7 * 960, 3)
    assert whole.state().recent_losses == (3.0, 2.0, 1.0, 4.0)


def test_a_run_without_an_fp16_tower_keeps_its_loss_scale_of_one() -> None:
    progress = go(Progress(recipe_of(), START, LossScale()), LOSSES)
    assert progress.state().loss_scale == (1.0, 0)


def test_too_many_skipped_steps_in_a_row_are_an_error_that_names_the_field() -> None:
    progress = Progress(recipe_of("faults.stop_after=2"), START, LossScale())
    go(progress, [None, 1.0, None])
    with pytest.raises(ValueError, match=r"faults\.stop_after 2: 2 steps in a row .* the last is step 3"):
        progress.advance(None)


def test_a_held_out_loss_belongs_to_its_step_alone() -> None:
    progress = go(Progress(recipe_of(), START, LossScale()), [1.0])
    progress.validated(0.5)
    assert progress.state().validation_loss == 0.5
    assert go(progress, [1.0]).state().validation_loss is None


def test_what_is_due_every_three_steps_is_due_after_the_last_step_too() -> None:
    progress, due = Progress(recipe_of(), START, LossScale()), []
    for _ in LOSSES:
        go(progress, [1.0])
        due += [progress.step] if progress.is_due(3) else []
    assert due == [3, 6, 7]


def test_an_interval_has_the_means_of_its_steps_and_skipped_ones_do_not_count() -> None:
    progress = Progress(recipe_of(), START, LossScale())
    for loss in (1.0, None, 3.0):
        progress.advance(None if loss is None else {"loss": torch.tensor(loss), "corrupt_samples": torch.ones(())})
    means = progress.end_interval()
    assert means["loss"] == 2.0 and means["corrupt_samples"] == 2
    assert progress.end_interval() == {} and progress.state().recent_losses == (2.0,)


def test_what_is_due_every_epoch_is_due_where_epochs_end() -> None:
    recipe = recipe_of("run.steps=0", "run.epochs=3", "run.checkpoint_every_steps=0").in_steps(2 * 960 + 7)
    progress, due = Progress(recipe, START, LossScale()), []
    for _ in range(6):
        go(progress, [1.0])
        due += [progress.step] if progress.is_due(recipe.run.checkpoint_every_steps) else []
    assert recipe.run.steps == 6 and due == [2, 4, 6]
