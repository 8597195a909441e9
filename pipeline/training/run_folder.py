"""A run's folder: what must be equal for a resume, one writer at a time, and the files that describe the run."""

import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.config import Recipe, dump_recipe
from pipeline.distributed import collectives, process_group
from pipeline.files import naming_full_disk, open_lock, replace_file
from pipeline.training import checkpoint
from pipeline.training.checkpoint import State

log = logging.getLogger(__name__)
# Sections and fields that change where and how often a run writes or how it is spread out, never what it computes.
FREE_TO_CHANGE: dict[str, Any] = {
    "run": {
        "output", "zero", "layout", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "keep_every_steps",
        "resume_despite", "hang_deadline_s", "compile",
    },
    "faults": {"stop_after", "save_failure"},
    "validation": True,
    "language": {"activation_checkpointing"},
    "vision": {"activation_checkpointing"},
    "data": {"manifest", "num_workers"},  # of the manifest its content counts, not its place
    "batch": True,
    "init_from_other_towers": True,
}  # fmt: skip


def initial_state(recipe: Recipe, manifest_digest: str, towers: dict[str, str] | None = None) -> State:
    """The state of a run before its first step; without `towers`, they are not compared."""
    settings = recipe.model_dump(mode="json", exclude=FREE_TO_CHANGE)
    if recipe.run.epochs:  # from which the steps follow, with the manifest
        del settings["run"]["steps"]
    settings["batch"] = {"global_size": recipe.batch.global_size}
    if recipe.stage == 1:  # its losses compare the pairs of one pass
        settings["batch"]["pass_size"] = recipe.batch.global_size // (recipe.batch.accumulation or 1)
    if recipe.data.pairs_per_sequence > 1:  # which pairs share a sequence
        settings["batch"]["micro_size"] = recipe.batch.micro_size
    if recipe.faults.spike_factor:  # a leap is measured by what was logged
        settings["run"]["log_every_steps"] = recipe.run.log_every_steps
    world_size = process_group.world_size()
    return State(0, 0, recipe.seed, world_size, manifest_digest, settings, towers or {}, {})


def is_complete(recipe: Recipe, manifest_digest: str) -> bool:
    """Whether the run folder holds the last step. Raises ValueError when it is another run's, before it is touched."""
    found = checkpoint.complete_checkpoints(recipe.run.output)
    if not found:
        return False
    state = checkpoint.read_state(found[-1], initial_state(recipe, manifest_digest), recipe.run.resume_despite)
    return state.step >= recipe.run.steps


def newest_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint to resume from. Collective. Raises ValueError when ranks do not see the same one."""
    found = checkpoint.complete_checkpoints(recipe.run.output)[-1:]
    own = int(found[0].name.removeprefix("step_")) if found else -1
    steps = [row[0] for row in collectives.gather_integers([own])]
    if len(set(steps)) > 1:
        raise ValueError(
            f"run.output {recipe.run.output}: ranks see different last checkpoints, of steps {steps} (-1: none); set a "
            "folder on a file system that all nodes share"
        )
    return found[0] if found else None


@contextmanager
def opened(recipe: Recipe) -> Iterator[Path]:
    """The run folder, held against other runs.

    Raises ValueError on every rank when another run holds it, or it cannot be written.
    """
    folder, lock, fault = recipe.run.output, None, None
    if process_group.rank() == 0:
        try:
            lock = _lock(folder)
            checkpoint.prune_incomplete(folder)
        except (OSError, ValueError) as error:
            fault = str(error)
    if collectives.any_rank(fault is not None):
        raise ValueError(fault or f"run.output {folder}: rank 0 cannot open it; see the output of rank 0")
    try:
        yield folder
    finally:
        if lock is not None:
            lock.close()


def _lock(folder: Path) -> BinaryIO:
    """A lock that the kernel, or the file server, takes back when its holder dies: it cannot go stale."""
    folder.mkdir(parents=True, exist_ok=True)
    file = open_lock(folder / "lock")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: forked workers do not hold it
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(file.fileno(), 200, 0).decode(errors="replace").strip()
        file.close()
        raise ValueError(
            f"run.output {folder}: another run is writing there ({holder}); wait for it, end it with `kill` of that "
            "process there (all its ranks save and end), or set another folder"
        ) from error
    except OSError as error:
        log.warning(
            "run.output %s: this file system has no locks (%s); make sure that only one run writes there",
            *(folder, error),
        )
        return file
    file.truncate(0)
    job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    with naming_full_disk(folder):
        file.write(f"host {socket.gethostname()}, process {os.getpid()}{job}\n".encode())
    return file


def describe(recipe: Recipe, ds_config: dict[str, Any]) -> None:
    """Rank 0 leaves recipe, resolved DeepSpeed configuration and environment, once the run is known to be this one.
    Collective."""
    with collectives.together():
        if process_group.rank() == 0:
            _describe(recipe, ds_config)


def _describe(recipe: Recipe, ds_config: dict[str, Any]) -> None:
    from importlib.metadata import version

    folder = recipe.run.output
    replace_file(folder / "recipe.yaml", dump_recipe(recipe))
    replace_file(folder / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers", "timm")}
    environment = {"world_size": process_group.world_size(), "python": sys.version.split()[0], "packages": packages}
    environment["steps"] = recipe.run.steps
    replace_file(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
