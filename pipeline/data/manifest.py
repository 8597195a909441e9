"""The manifest: which shards make a data set, and where in each tar every sample lies.

A manifest is one JSON file outside the shard folders, written by `data_prep.index`. Beside it, in `NAME.index/`, lies
one `.npy` per shard: int64 [samples, 4], a row a sample = (jpg offset, jpg bytes, json offset, json bytes), so that a
reader seeks straight to a sample. Readers trust the manifest, never a glob. Paths are relative to its folder.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "blip2-manifest/1"


@dataclass(frozen=True)
class Shard:
    """One tar of samples. `sha256` is that of the tar's bytes; `provenance` is what its receipt says of its making."""

    path: str
    index: str
    source: str
    bytes: int
    sha256: str
    samples: int
    captions: int
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The shards of a data set, in order, and the folder that their paths are relative to."""

    root: Path
    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def captions(self) -> int:
        return sum(shard.captions for shard in self.shards)

    def digest(self) -> str:
        """sha256 over the shards' own digests, in order: what a data order depends on, wherever the files lie."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def shard_path(self, shard: Shard) -> Path:
        return self.root / shard.path

    def offsets(self, shard: Shard) -> NDArray[np.int64]:
        """Memory-mapped int64 [samples, 4]: (jpg offset, jpg bytes, json offset, json bytes) of each sample."""
        offsets: NDArray[np.int64] = np.load(self.root / shard.index, mmap_mode="r", allow_pickle=False)
        if offsets.shape != (shard.samples, 4):
            raise ValueError(f"{self.root / shard.index}: shape {offsets.shape}, expected ({shard.samples}, 4)")
        return offsets


def load_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises ValueError, naming file and field, when it is missing, malformed or empty."""
    if not path.is_file():
        raise ValueError(
            f"manifest {path}: no such file; write one with `python -m data_prep.index DIR --output {path}`"
        )
    try:
        content = json.loads(path.read_text())
        found = content["format"]
        shards = tuple(Shard(**entry) for entry in content["shards"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"manifest {path}: not a valid manifest ({error})") from error
    if found != FORMAT:
        raise ValueError(f"manifest {path}: format {found!r}, expected {FORMAT!r}")
    if not shards:
        raise ValueError(f"manifest {path}: it lists no shard")
    for shard in shards:
        for relative in (shard.path, shard.index):
            if Path(relative).is_absolute() or ".." in Path(relative).parts:
                raise ValueError(f"manifest {path}: shard path {relative!r} leaves the manifest's folder")
    return Manifest(path.parent, shards)


def dropped_by_source(shards: Sequence[Shard]) -> dict[str, dict[str, int]]:
    """Source -> reason -> samples that were dropped when its shards were made."""
    dropped: dict[str, Counter[str]] = {}
    for shard in shards:
        dropped.setdefault(shard.source, Counter()).update(shard.provenance.get("dropped", {}))
    return {source: dict(sorted(reasons.items())) for source, reasons in sorted(dropped.items())}


def manifest_json(shards: Sequence[Shard], empty: Sequence[Shard] = ()) -> str:
    """The text of a manifest file; the same shards give the same bytes.

    `empty` are shards that lost all their samples: readers skip them, the account of what was dropped does not.
    """
    content = {
        "format": FORMAT,
        "samples": sum(shard.samples for shard in shards),
        "captions": sum(shard.captions for shard in shards),
        "dropped": dropped_by_source([*shards, *empty]),
        "empty_shards": [asdict(shard) for shard in empty],
        "shards": [asdict(shard) for shard in shards],
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
