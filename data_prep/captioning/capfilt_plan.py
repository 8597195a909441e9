"""Says how CapFilt makes each shard, and recognises by a hash which shards are already made."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.shards.drop_lists import digest_of, read_drop_list
from data_prep.shards.receipts import CAPTIONED, read_receipt
from pipeline.files import sha256_of_json

RULES = "capfilt/2"
"""Increase the number when the same settings give other captions than before: older shards are then made again."""


@dataclass(frozen=True)
class Selection:
    """Which of the candidates are kept."""

    top_k: int = 2
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k}: must be at least 1")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ValueError(f"--min-score {self.min_score}: must be a finite number")


@dataclass(frozen=True)
class Plan:
    """How each shard is made. `making` holds the sampling settings and the digests of both models; `drops` is the
    folder of the drop lists, or None."""

    output: Path
    making: dict[str, Any]
    selection: Selection
    drops: Path | None = None

    def dropped(self, tar: Path) -> dict[str, str]:
        """Key -> reason of the samples of a shard to leave out. Raises ValueError when its drop list is missing."""
        return read_drop_list(self.drops, tar, read_receipt(tar).tar_sha256) if self.drops else {}

    def config_hash(self, tar: Path) -> str:
        content = {"rules": RULES, "making": self.making, "selection": asdict(self.selection)}
        if (drops := digest_of(self.dropped(tar))) is not None:
            content["drops"] = drops
        return sha256_of_json(content)

    def target(self, tar: Path) -> Path:
        return self.output / tar.name

    def finished(self, tar: Path) -> bool:
        """Whether the output folder holds this shard, made from these bytes with these settings."""
        target, given = self.target(tar), read_receipt(tar)
        try:
            made = read_receipt(target)
        except ValueError:
            return False
        return target.is_file() and made.same_work(CAPTIONED, given.tar_sha256, self.config_hash(tar))
