"""Checkpoints: a folder for a step, whole only with its COMPLETE file; trained weights and AdamW's state, no tower.

    step_00001000/  trainable.safetensors  optimizer.safetensors  state.json  COMPLETE

Nothing in it depends on the number of ranks or the ZeRO stage, and nothing is a pickle.
"""

import json
import logging
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.config import Recipe, defaults, is_same_place
from pipeline.data.manifest import Count
from pipeline.distributed import collectives, process_group
from pipeline.files import first_fault, read_whole, replace_file, sha256_of, sync_file
from pipeline.weights import native

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

log = logging.getLogger(__name__)
COMPLETE = "COMPLETE"
OPTIMIZER = "optimizer.safetensors"
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StateVersionError(ValueError):
    """A state.json has other fields than this version of the project."""


class SaveError(OSError):
    """A checkpoint could not be written; raised on every rank, and nothing of it is left."""


@dataclass(frozen=True)
class State:
    """What resuming needs beside weights and optimizer. Random draws need no state: they depend on seed, step and rank.

    `step` steps are done, `consumed` samples trained on; `skipped` of the steps did not change the weights. `settings`
    are the recipe's fields that decide what a run computes, `towers` the fingerprints of frozen weights, and of what
    else a place decides (KNOWN_BY), `digests` the sha256 of the checkpoint's files. `loss_scale` is that of an fp16
    tower, with its good steps. A spike is measured by `recent_losses`. `validation_loss` is set when it was measured
    after this very step.
    """

    step: Count
    consumed: Count
    seed: int
    world_size: Count
    manifest: str
    settings: dict[str, Any]
    towers: dict[str, str]
    digests: dict[str, str]
    skipped: Count = 0
    loss_scale: tuple[Scale, Count] = (1.0, 0)
    skipped_in_a_row: Count = 0
    recent_losses: tuple[float, ...] = ()
    validation_loss: float | None = None


# Of a setting that names a place: the fingerprint in `towers` of what else decides there, beside frozen weights.
KNOWN_BY = {
    "vision.name": "vision.settings", "qformer.bert": "qformer.settings", "language.name": "language.settings",
    "init_weights": "init_weights", "init_text_weights": "init_text_weights",
}  # fmt: skip
WEIGHTS = ("vision", "language")
MOST_TOLD = 4
"""Of the fields that differ, so many are told with their values."""
PROGRESS = ("step", "consumed", "digests", "skipped", "skipped_in_a_row")


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


def write(weights: "Tensors", moments: "Tensors", recipe: Recipe, state: State) -> None:
    """Write a step's checkpoint, COMPLETE last, then remove old ones. For a thread of rank 0: there is no collective.

    Raises SaveError in one line when it cannot be written, as on a full disk; then nothing of it is left.
    """
    _write(folder_of(recipe.run.output, state.step), weights, moments, recipe, state)
    _remove_old(recipe.run.output, recipe)


def _write(folder: Path, weights: "Tensors", moments: "Tensors", recipe: Recipe, state: State) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        told = {"towers": json.dumps(state.towers), "references": json.dumps(recipe.references)}
        native.save_tensors(weights, recipe, state.step, folder, **told)
        save_file(moments, folder / OPTIMIZER)
        sync_file(folder / OPTIMIZER)
        digests = {name: sha256_of(folder / name) for name in (native.FILE_NAME, OPTIMIZER)}
        replace_file(folder / "state.json", json.dumps(asdict(replace(state, digests=digests)), indent=1) + "\n")
        replace_file(folder / COMPLETE, "")
    except (OSError, ValueError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        whole = complete_checkpoints(folder.parents[1])
        earlier = f"the last whole checkpoint is {whole[-1]}" if whole else "there is no earlier checkpoint"
        raise SaveError(
            f"checkpoint {folder}: cannot be written ({error}); {earlier}. Remove the cause, and run the command again"
        ) from error


def _remove_old(run_folder: Path, recipe: Recipe) -> None:
    """Keep the last K, every N-th step's, and the one with the lowest validation loss."""
    run, whole = recipe.run, complete_checkpoints(run_folder)
    losses = {path: _read_state(path).validation_loss for path in whole}
    scored = {path: loss for path, loss in losses.items() if loss is not None and math.isfinite(loss)}
    kept = {*whole[-run.keep_checkpoints :], *([min(scored, key=lambda path: scored[path])] if scored else [])}
    for old in whole:
        step = int(old.name.removeprefix("step_"))
        if old in kept or (run.keep_every_steps and step % run.keep_every_steps == 0):
            continue
        (old / COMPLETE).unlink()  # first of all: a half-removed folder must not look whole
        shutil.rmtree(old)


def _read_state(folder: Path) -> State:
    """A checkpoint's state.json. Raises ValueError when it is not readable, or says what cannot be."""
    from pydantic import TypeAdapter, ValidationError

    try:
        text = read_whole(folder / "state.json")
        content = json.loads(text)
        if not isinstance(content, dict) or content.keys() != State.__dataclass_fields__.keys():
            raise StateVersionError(
                f"checkpoint {folder}: state.json is not of this version of the project; set a new run.output"
            )
        state = TypeAdapter(State).validate_json(text, strict=True)
        if folder_of(folder.parents[1], state.step).name != folder.name or state.skipped > state.step:
            raise ValueError(f"step {state.step}, of which {state.skipped} were skipped")
        if state.digests.keys() != {native.FILE_NAME, OPTIMIZER}:  # they name files of the folder
            raise ValueError(f"digests of {sorted(state.digests)}")
    except StateVersionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        told = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"checkpoint {folder}: state.json is not readable ({told}); remove the folder") from error
    return state


def _differences(found: Any, wanted: Any, name: str) -> list[tuple[str, str]]:
    """The fields in which two nested settings differ: (name, both values)."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            each
            for key in sorted({*found, *wanted})
            for each in _differences(found.get(key), wanted.get(key), f"{name}.{key}")
        ]
    return [] if found == wanted else [(name, f"{name} was {found!r} when it was saved and is {wanted!r} now")]


def _is_moved(name: str, state: State, expected: State) -> bool:
    """Whether a place has another name and the same content. While towers are not loaded, whether that can be known."""
    pair = []
    for settings in (state.settings, expected.settings):
        found: Any = settings
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        pair.append(found)
    if is_same_place(name, *pair):
        return True
    known = state.towers.get(KNOWN_BY.get(name, ""))
    return known is not None and (not expected.towers or expected.towers.get(KNOWN_BY[name]) == known)


def _of_today(found: Any, wanted: Any, default: Any) -> Any:
    """Saved settings with the defaults of the fields that came into recipes since then."""
    if not (isinstance(found, dict) and isinstance(wanted, dict) and isinstance(default, dict)):
        return found
    new = {name: default[name] for name in wanted if name in default and name not in found}
    return new | {name: _of_today(value, wanted.get(name), default.get(name)) for name, value in found.items()}


def read_state(folder: Path, expected: State, despite: tuple[str, ...] = ()) -> State:
    """How far a checkpoint is, in this run. Raises ValueError naming the differences from the run that saved it.

    `despite` lists names (or beginnings of them, to a dot) of what may differ: `manifest`, `towers`, `optimizer`, ...
    """
    state = _read_state(folder)
    state = replace(state, settings=_of_today(state.settings, expected.settings, defaults()))
    refused: dict[str, str] = {}  # name -> both values
    for field in ("settings", "manifest", "seed", "towers"):
        if field == "towers" and not expected.towers:
            continue  # not loaded yet
        found, wanted = getattr(state, field), getattr(expected, field)
        if field == "towers":
            found, wanted = ({name: each[name] for name in WEIGHTS if name in each} for each in (found, wanted))
        for full_name, difference in _differences(found, wanted, field):
            name = full_name.removeprefix("settings.")
            if field == "settings" and _is_moved(name, state, expected):
                log.info("%s; what is there is the same", difference.removeprefix("settings."))
                continue
            if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in despite):
                refused[name] = difference.removeprefix("settings.")
            else:
                log.warning("resuming (run.resume_despite), although %s", difference)
    if refused:
        names = ["stage"] if "stage" in refused else list(refused)  # another stage explains the rest
        told = "; ".join(refused[name] for name in names[:MOST_TOLD])
        more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
        raise ValueError(
            f"checkpoint {folder}: {told}{more}; change that back, set a new run.output, or allow the difference with "
            f"--set run.resume_despite=[{','.join(names)}]"
        )
    progress = {field: getattr(state, field) for field in PROGRESS}
    pairs = {"loss_scale": tuple(state.loss_scale), "recent_losses": tuple(state.recent_losses)}
    return replace(expected, **progress | pairs)


def read_optimizer(folder: Path, state: State) -> dict[str, "Tensor"]:
    """AdamW's moments, after comparing the files' digests on rank 0. Raises ValueError naming the file that changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    changed = []
    if process_group.rank() == 0:
        changed = [name for name, digest in state.digests.items() if sha256_of(folder / name) != digest]
    if collectives.any_rank(bool(changed)):
        name = changed[0] if changed else "a file"
        raise ValueError(f"checkpoint {folder}: {name} differs from the file that was saved; remove the folder")
    try:
        moments: dict[str, Tensor] = load_file(folder / OPTIMIZER)
        return moments
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {folder}: {OPTIMIZER} is not readable ({error}); remove the folder") from error
