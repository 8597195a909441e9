"""The watch list: run folders, what their checkpoints are evaluated on, and each evaluation's folder."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from eval.catalogue import known_task
from pipeline.files import first_fault, read_whole

STEP = "step_"
BATCH_SIZE = "--batch-size"
NAME = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
)  # of a folder, and part of a job's name, where a comma separates jobs


class Wanted(BaseModel):
    """One evaluation of every checkpoint of `runs`: names of run folders; all runs when the list is empty.

    `run` and `score` are flags of eval.run and eval.score; `sbatch` and `score_sbatch` are options of the two jobs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: Annotated[str, AfterValidator(known_task)]
    data: str
    runs: list[str] = []
    run: list[str] = []
    score: list[str] = []
    sbatch: list[str] = []
    score_sbatch: list[str] = []


class WatchList(BaseModel):
    """`output`/RUN/step_N/NAME holds evaluation NAME of RUN's checkpoint at step N.

    Only steps that `every_steps` divides are evaluated. `report` are flags of eval.report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    output: Path
    runs: list[Path] = Field(min_length=1)
    evaluations: dict[str, Wanted] = Field(min_length=1)
    every_steps: int = Field(default=1, ge=1)
    report: list[str] = []

    @model_validator(mode="after")
    def _names_are_one_folder_each(self) -> "WatchList":
        names = [run.name for run in self.runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"runs: two are called {twice!r} and would share a folder; rename one of them")
        named = [*(("runs", name) for name in names), *(("evaluations", name) for name in self.evaluations)]
        bad = next(((field, name) for field, name in named if not NAME.fullmatch(name)), None)
        if bad is not None:
            field, name = bad
            raise ValueError(
                f"{field}: {name!r}: a name has only letters, digits, '.', '_' and '-', and no '.' first; rename it"
            )
        for name, each in self.evaluations.items():
            unknown = next((run for run in each.runs if run not in names), None)
            if unknown is not None:
                raise ValueError(f"evaluations.{name}.runs: {unknown!r} is none of the runs {names}; correct it")
        return self


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one checkpoint."""

    name: str
    wanted: Wanted
    checkpoint: Path
    folder: Path
    report: tuple[str, ...] = ()

    @property
    def job_name(self) -> str:
        """A name that no other evaluation of any list has: it ends in a hash of the evaluation's folder."""
        place = hashlib.sha256(os.path.realpath(self.folder).encode(errors="surrogateescape")).hexdigest()[:8]
        return f"eval-{self.folder.parent.parent.name}-{self.checkpoint.name}-{self.name}-{place}"

    @property
    def asked(self) -> dict[str, object]:
        """The settings that decide the result, beside the weights. The batch size does not."""
        asked = self.wanted.model_dump(include={"task", "data", "run", "score"})
        return asked | {"run": _without(asked["run"], BATCH_SIZE)}

    @property
    def has_checkpoint(self) -> bool:
        return (self.checkpoint / "COMPLETE").exists()


def _without(flags: Sequence[str], flag: str) -> list[str]:
    """The flags without this one and its value."""
    kept = [each for at, each in enumerate(flags) if each != flag and flags[at - 1 : at] != [flag]]
    return [each for each in kept if not each.startswith(f"{flag}=")]


def read_watch_list(path: Path) -> WatchList:
    """Raises ValueError in one line, naming the field, for a list that cannot be used."""
    try:
        return WatchList.model_validate(yaml.safe_load(read_whole(path).decode()))
    except ValidationError as error:
        told = first_fault(error, WatchList)
        raise ValueError(f"{path}: not a watch list ({told}); eval/README.md has an example") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a date that cannot be
        raise ValueError(f"{path}: not readable as YAML ({error}); name a watch list") from error


def evaluations(wanted: WatchList) -> Iterator[Evaluation]:
    """Every evaluation of every complete checkpoint, in the order of the runs and steps."""
    for run in wanted.runs:
        for complete in sorted(run.glob(f"checkpoints/{STEP}*/COMPLETE")):
            yield from _of_checkpoint(wanted, run, complete.parent)


def begun_without_checkpoint(wanted: WatchList, note: str) -> Iterator[Evaluation]:
    """Every evaluation with a file `note` whose checkpoint is gone, while its run's folder is there."""
    for run in wanted.runs:
        steps = {path.parent.parent.name for path in (wanted.output / run.name).glob(f"{STEP}*/*/{note}")}
        for step in sorted(steps if run.is_dir() else ()):
            for evaluation in _of_checkpoint(wanted, run, run / "checkpoints" / step):
                if not evaluation.has_checkpoint and (evaluation.folder / note).is_file():
                    yield evaluation


def _of_checkpoint(wanted: WatchList, run: Path, checkpoint: Path) -> Iterator[Evaluation]:
    number = checkpoint.name.removeprefix(STEP)
    if not number.isdecimal() or int(number) % wanted.every_steps:
        return
    for name, each in wanted.evaluations.items():
        if not each.runs or run.name in each.runs:
            folder = wanted.output / run.name / checkpoint.name / name
            yield Evaluation(name, each, checkpoint, folder, tuple(wanted.report))
