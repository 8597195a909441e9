"""Loads a manifest for a command that reads whatever it is given: every field's type is checked before it is used."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Manifest, Shard, load_manifest

TEXTS, NUMBERS = ("path", "index", "source", "sha256"), ("bytes", "samples", "captions")
KINDS = dict.fromkeys(TEXTS, str) | dict.fromkeys(NUMBERS, int) | {"provenance": dict}


@dataclass(frozen=True)
class Accounts:
    """What a manifest says beside its shards: its totals, as they stand there, and the shards without samples.

    `dropped` is None in manifests of before it was written.
    """

    totals: dict[str, Any]
    dropped: Any
    empty: tuple[Shard, ...]


def load_checked(path: Path) -> Manifest:
    """As `load_manifest`; raises ValueError, naming file and field, on a value of the wrong type as well."""
    try:
        manifest = load_manifest(path)
    except (TypeError, AttributeError, RecursionError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"manifest {path}: not a valid manifest ({error})") from error
    for number, shard in enumerate(manifest.shards):
        if fault := _fault(shard):
            raise ValueError(f"manifest {path}: shard {number}: {fault}")
    return manifest


def load_accounts(path: Path) -> Accounts:
    """What stands beside the shards in a manifest that `load_checked` has taken. Raises ValueError, naming file and
    field, on a malformed shard without samples."""
    content = json.loads(path.read_text())
    try:
        empty = tuple(Shard(**entry) for entry in content.get("empty_shards", []))
    except TypeError as error:
        raise ValueError(f"manifest {path}: empty_shards is no list of shards ({error})") from error
    for number, shard in enumerate(empty):
        if fault := _fault(shard, empty=True) or ("has samples" if shard.samples or shard.captions else None):
            raise ValueError(f"manifest {path}: empty shard {number}: {fault}")
    totals = {name: content.get(name) for name in ("samples", "captions")}
    return Accounts(totals, content.get("dropped"), empty)


def checked_offsets(manifest: Manifest, shard: Shard) -> NDArray[np.int64]:
    """As `Manifest.offsets`; raises ValueError, naming the file, on a damaged one, and on places beyond the tar."""
    path = manifest.root / shard.index
    try:
        if not path.is_file():
            raise ValueError("no such file")
        table = manifest.offsets(shard)
        if table.dtype != np.int64:
            raise ValueError(f"of {table.dtype}")
    except Exception as error:  # a damaged header makes numpy raise nearly anything
        raise ValueError(f"{path}: not a table of offsets ({error}); run data_prep.index again") from error
    if table.size and (table.min() < 0 or table.max() > shard.bytes):  # a read past the end comes short, and is named
        raise ValueError(f"{path}: points beyond the {shard.bytes} bytes of its tar; run data_prep.index again")
    return table


def _fault(shard: Shard, *, empty: bool = False) -> str | None:
    for name, kind in KINDS.items():
        value = getattr(shard, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} is no {kind.__name__}"
        if isinstance(value, int) and not 0 <= value < 1 << 62:
            return f"{name} is {'negative' if value < 0 else 'too large'}"
        if isinstance(value, str) and not (value.isprintable() and (value or (empty and name == "index"))):
            return f"{name} is empty or unprintable"
    if any(Path(each).is_absolute() or ".." in Path(each).parts for each in (shard.path, shard.index)):
        return f"path {shard.path!r} leaves the manifest's folder"
    dropped = shard.provenance.get("dropped", {})
    if not isinstance(dropped, dict) or not all(isinstance(number, int) for number in dropped.values()):
        return "dropped is not whole numbers by reason"
    return None
