"""Reads images of this machine, below one root folder that no path may leave."""

import re
from pathlib import Path

from data_prep.shards.ledger import Drop

SUBFOLDERS = (".", "VG_100K", "VG_100K_2", "train2014", "val2014")
"""The folders of Visual Genome's and COCO's archives; tables of other sources give the whole path below the root."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def read_local(root: Path, name: str, max_bytes: int) -> bytes | Drop:
    """The bytes of a file below `root`, or why it was refused. Symlinks are followed, and must end below the root
    too."""
    if SCHEME.match(name) or "\0" in name:
        return Drop("refused_scheme")
    try:
        return _read_below(root.resolve(), name, max_bytes)
    except (OSError, UnicodeEncodeError):  # the latter: a name that file names of this locale cannot have
        return Drop("unreadable_file")


def _read_below(root: Path, name: str, max_bytes: int) -> bytes | Drop:
    for folder in SUBFOLDERS:
        path = (root / folder / name).resolve()
        if not path.is_relative_to(root):
            return Drop("refused_path")
        if path.is_file():
            return Drop("byte_cap") if path.stat().st_size > max_bytes else path.read_bytes()
    return Drop("missing_file")
