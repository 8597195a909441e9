"""Runs of pipeline.train on tiny towers, within ranks that a test has started."""

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[2]
Write = Callable[..., list[str]]  # of a recipe, with a name and changed sections


def write_recipe(
    folder: Path, towers: Path, manifest: Path, name: str, stage: int, language: str | None, **sections: Any
) -> list[str]:
    """A recipe as YAML, output in `folder/name`, some fields replaced; returns pipeline.train's arguments."""
    content: dict[str, Any] = tiny_recipe(towers, manifest, folder / name, stage, language)
    for section, fields in sections.items():
        content[section] = content.get(section, {}) | fields if isinstance(fields, dict) else fields
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--recipe", str(path)]


def train_here(arguments: list[str]) -> tuple[int, str, str]:
    """`pipeline.train` in this rank: exit code, standard output and errors."""
    from pipeline import train

    with (
        mock.patch.object(sys, "argv", ["pipeline.train", *arguments]),
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        code = train.main()
    return code, output.getvalue(), errors.getvalue()


def train_and_watch(arguments: list[str]) -> tuple[int, str, list[list[int]], dict[str, str]]:
    """The same: exit code, errors, the image ids of this rank's steps, and what the engine's bridge weights are of.

    Frozen towers must have at the end the fingerprints that they had before the first step.
    """
    from pipeline.training import loop

    ids, dtypes = [], {}
    train_step, fit = loop.train_step, loop.fit

    def fit_and_compare(parts: Any, progress: Any) -> bool:
        task = parts.engine.module
        if hasattr(task, "language_model"):
            return fit(parts, progress)  # sharded: a rank holds parts, more of them after a step than before
        before = task.towers.fingerprints()
        finished = fit(parts, progress)
        assert task.towers.fingerprints() == before, "a frozen tower has changed"
        return finished

    def watched(engine: Any, batches: Any, *others: Any) -> Any:
        ids.append([number for batch in batches for number in batch.image_ids_B.tolist()])
        dtypes.update({name: str(p.dtype) for name, p in engine.module.bridge.named_parameters()})
        return train_step(engine, batches, *others)

    with mock.patch.object(loop, "train_step", watched), mock.patch.object(loop, "fit", fit_and_compare):
        code, _, errors = train_here(arguments)
    return code, errors, ids, dtypes


def lines_of(run_folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
