"""The watch list: run folders, and what each of their checkpoints is evaluated on; and where each evaluation lies."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

STEP = "step_"


class Wanted(BaseModel):
    """One evaluation of every checkpoint of `runs` (their folders' names; all when there is none).

    `run` and `score` are flags of eval.run and eval.score, `sbatch` and `score_sbatch` options of the two jobs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: Literal["captioning", "nocaps", "vqa", "okvqa", "gqa", "retrieval"]
    data: str
    runs: list[str] = []
    run: list[str] = []
    score: list[str] = []
    sbatch: list[str] = []
    score_sbatch: list[str] = []


class WatchList(BaseModel):
    """`output`/RUN/step_N/NAME holds evaluation NAME of a checkpoint of RUN; `every_steps` leaves others out."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    output: Path
    runs: list[Path] = Field(min_length=1)
    evaluations: dict[str, Wanted] = Field(min_length=1)
    every_steps: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _names_are_one_folder_each(self) -> "WatchList":
        names = [run.name for run in self.runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"runs: two are called {twice!r}; their evaluations would share a folder")
        bad = next((name for name in self.evaluations if "/" in name or name.startswith(".")), None)
        if bad is not None:
            raise ValueError(f"evaluations: {bad!r} is to be a folder's name")
        for name, each in self.evaluations.items():
            stranger = next((run for run in each.runs if run not in names), None)
            if stranger is not None:
                raise ValueError(f"evaluations.{name}.runs: {stranger!r} is none of the runs {names}")
        return self


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one whole checkpoint."""

    name: str
    wanted: Wanted
    checkpoint: Path
    folder: Path

    @property
    def job_name(self) -> str:
        return f"eval-{self.folder.parent.parent.name}-{self.checkpoint.name}-{self.name}"


def read_watch_list(path: Path) -> WatchList:
    """Raises ValueError in one line, naming the field, for a list that cannot be used."""
    try:
        return WatchList.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not readable as YAML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {field or 'the list'}: {first['msg']} (found {first['input']!r:.80})") from error


def evaluations(wanted: WatchList) -> Iterator[Evaluation]:
    """Every evaluation of every checkpoint that is whole by now, in the order of the runs and steps."""
    for run in wanted.runs:
        for complete in sorted(run.glob(f"checkpoints/{STEP}*/COMPLETE")):
            checkpoint = complete.parent
            number = checkpoint.name.removeprefix(STEP)
            if not number.isdecimal() or int(number) % wanted.every_steps:
                continue
            for name, each in wanted.evaluations.items():
                if each.runs and run.name not in each.runs:
                    continue
                yield Evaluation(name, each, checkpoint, wanted.output / run.name / checkpoint.name / name)
