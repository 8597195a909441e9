"""Checkpoints: a folder a step, whole only with its COMPLETE file; trainables and optimizer, never a frozen tower."""

import json
import logging
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Recipe
from pipeline.distributed import collectives, process_group
from pipeline.weights import native

log = logging.getLogger(__name__)
COMPLETE = "COMPLETE"


@dataclass(frozen=True)
class State:
    """What resuming needs beside weights and optimizer. `step` steps are done, `consumed` samples trained on.

    `settings` are the recipe's fields that decide what a run computes.
    """

    step: int
    consumed: int
    seed: int
    world_size: int
    manifest: str
    settings: dict[str, Any]


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step_{step:08d}"


def complete_checkpoints(run_folder: Path) -> list[Path]:
    """Folders that may be loaded, oldest first."""
    return sorted(path.parent for path in (run_folder / "checkpoints").glob(f"step_*/{COMPLETE}"))


def prune_incomplete(run_folder: Path) -> None:
    """Remove what a killed run left half-written. Rank 0 alone calls this, before any rank saves or loads."""
    whole = set(complete_checkpoints(run_folder))
    for path in (run_folder / "checkpoints").glob("step_*"):
        if path not in whole:
            log.warning("removing incomplete checkpoint %s", path)
            shutil.rmtree(path)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _random_state() -> dict[str, Any]:
    import torch

    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(), "python": random.getstate()}


def save(engine: Any, recipe: Recipe, state: State, run_folder: Path) -> Path:
    """Every rank calls this at the same step. COMPLETE is written last, after all ranks' parts; then old ones go.

    A step that is saved already is left as it is: writing over it would leave nothing whole if that were cut short.
    """
    import torch

    folder, rank = folder_of(run_folder, state.step), process_group.rank()
    if (folder / COMPLETE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    collectives.barrier()
    engine.save_checkpoint(str(folder), tag="engine", exclude_frozen_parameters=True, save_latest=False)
    torch.save(_random_state(), folder / f"random_rank{rank}.pt")
    if rank == 0:
        native.save_weights(engine.module.bridge, recipe, state.step, folder)
        _write_durably(folder / "state.json", json.dumps(asdict(state), indent=1) + "\n")
    collectives.barrier()
    if rank == 0:
        _write_durably(folder / COMPLETE, "")
        for old in complete_checkpoints(run_folder)[: -recipe.run.keep_checkpoints]:
            (old / COMPLETE).unlink()  # first of all: a half-removed folder must not look whole
            shutil.rmtree(old)
    return folder


def _difference(found: Any, wanted: Any, name: str) -> str | None:
    """The first field in which two nested settings differ, with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = (_difference(found.get(key), wanted.get(key), f"{name}.{key}") for key in sorted({*found, *wanted}))
        return next((part for part in parts if part), None)
    return None if found == wanted else f"{name} was {found!r} when it was saved and is {wanted!r} now"


def read_state(folder: Path, expected: State) -> State:
    """The state of a checkpoint. Raises ValueError naming what differs from the run that saved it."""
    state = State(**json.loads((folder / "state.json").read_text()))
    for field in ("settings", "manifest", "seed", "world_size"):
        difference = _difference(getattr(state, field), getattr(expected, field), field)
        if difference:
            name = difference.removeprefix("settings.")
            raise ValueError(f"checkpoint {folder}: {name}; put it back, or start a new run folder (run.output)")
    return state


def load(engine: Any, folder: Path, expected: State) -> State:
    """Restore weights, optimizer and random state. Raises ValueError naming what differs from the run that saved it."""
    import torch

    state = read_state(folder, expected)
    loaded, _ = engine.load_checkpoint(str(folder), tag="engine", load_module_strict=True)
    if loaded is None:  # DeepSpeed only warns
        raise ValueError(f"checkpoint {folder}: DeepSpeed finds no state in its engine folder; remove the checkpoint")
    # Written by this run itself, in its own folder, and read back by torch's restricted unpickler.
    random_state = torch.load(folder / f"random_rank{process_group.rank()}.pt", weights_only=True)
    torch.set_rng_state(random_state["torch"])
    torch.cuda.set_rng_state_all(random_state["cuda"])
    version, internal, gauss = random_state["python"]
    random.setstate((version, tuple(internal), gauss))
    return state
