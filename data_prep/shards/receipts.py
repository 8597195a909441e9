"""Writes and reads receipts (`STEM.receipt.json`): the tar beside a receipt is finished.

A receipt says what the tar was made from and what it holds. It is the last file of a shard that is written. A tar
without a receipt is unfinished: readers ignore it, and its writer writes it again.
"""

import json
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.data.manifest import Count
from pipeline.files import read_validated, replace_file

DOWNLOADED, CAPTIONED = "download", "capfilt"
"""The stages that write shards."""
ENDING = ".receipt.json"


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""It becomes a part of file names, and must hold no path."""


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Receipt:
    """A finished tar: how it was made (stage, input, settings), what it holds, and how many samples were dropped
    why."""

    stage: str
    input_sha256: str
    config_hash: str
    tar_sha256: Digest
    bytes: Count
    samples: Count
    captions: Count
    seed: int
    models: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, Count] = field(default_factory=dict)
    questions: Count = 0
    dropped_questions: dict[str, Count] = field(default_factory=dict)
    """Reason -> questions that were dropped, alone or with their picture."""
    question_sets: dict[str, Count] = field(default_factory=dict)
    """Question set, such as vqav2_val2014 -> the number of its questions that are here."""
    cleaned_of: dict[str, Count] = field(default_factory=dict)
    """Evaluation set whose pictures were dropped, such as karpathy_test -> the number of its pictures."""

    def same_work(self, stage: str, input_sha256: str, config_hash: str) -> bool:
        """Whether this receipt belongs to the given work, so that the work need not be done again."""
        return (self.stage, self.input_sha256, self.config_hash) == (stage, input_sha256, config_hash)

    def provenance(self) -> dict[str, Any]:
        """The fields of a receipt that a manifest repeats; of the last three, those that say something."""
        names = ["stage", "input_sha256", "config_hash", "seed", "models", "dropped"]
        names += [name for name in ("dropped_questions", "question_sets", "cleaned_of") if getattr(self, name)]
        return {name: getattr(self, name) for name in names}


def receipt_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.stem}{ENDING}")


def source_of(tar: Path) -> str:
    """The source in the name of a shard, SOURCE-TASK-NUMBER.tar."""
    return tar.stem.rsplit("-", 2)[0]


def write_receipt(tar: Path, receipt: Receipt) -> Path:
    """Declare `tar` finished. Returns the receipt's path."""
    path = receipt_path(tar)
    replace_file(path, json.dumps(asdict(receipt), sort_keys=True, indent=1) + "\n")
    return path


def read_receipt(tar: Path) -> Receipt:
    """The receipt beside `tar`. Raises ValueError, with the file's name, when it is missing or malformed."""
    path = receipt_path(tar)
    if not path.exists():
        raise ValueError(f"{tar}: has no receipt, so it is unfinished; run the step that writes it again")
    return read_validated(path, Receipt, "a valid receipt")


def finished_shards(folder: Path) -> list[Path]:
    """The tars of `folder` that have a receipt, in order of name; [] if there is none.

    Only receipts count: a tar that is missing beside its receipt is listed, and reading it is an error. Samples must
    not disappear without an error.
    """
    return sorted(path.with_name(path.name.removesuffix(ENDING) + ".tar") for path in folder.glob(f"*{ENDING}"))
