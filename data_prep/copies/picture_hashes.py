"""Reads the hashes of the pictures of finished shards from their ledgers, and computes those of evaluation pictures."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.shards.ledger import ledger_path, read_ledger
from data_prep.shards.receipts import finished_shards, read_receipt
from data_prep.shards.tar_files import content_hash

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
LONGEST_SIDE_PX = 1 << 16
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Hashes:
    """The hashes of pictures, one entry for each. `phash` is valid only where `has_phash`: a flat picture has none."""

    content: NDArray[np.uint64]
    """64 bits of the sha256 of the JPEG. That any two of 129 million agree by chance has a probability of 5e-4."""
    urls: NDArray[np.uint64]
    phash: NDArray[np.uint64]
    has_phash: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.content)


def shard_hashes(tar: Path) -> Hashes:
    """The hashes of a finished shard's samples. Raises ValueError, with the file's name, without a ledger with
    hashes."""
    rows = kept_rows(tar, ("status", "url", "sha256", "phash"))
    if any(row["sha256"] is None for row in rows):
        raise ValueError(f"{ledger_path(tar)}: a kept row has no sha256; run data_prep.download into another folder")
    return Hashes(
        np.array([content_hash(ledger_path(tar), str(row["sha256"])) for row in rows], np.uint64),
        _text_hashes([row["url"] for row in rows]),
        np.array([row["phash"] or 0 for row in rows], np.uint64),
        np.array([row["phash"] is not None for row in rows], np.bool_),
    )


def known_phashes(tars: Sequence[Path], content: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """For each picture of `content` its perceptual hash in the ledgers of these tars, and whether it has one: a flat
    picture has none.

    Raises ValueError when a picture is in no ledger.
    """
    contents, hashes, hashed = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, np.bool_)]
    for tar in tars:
        rows = kept_rows(tar, ("status", "sha256", "phash"))
        contents.append(np.array([content_hash(ledger_path(tar), str(row["sha256"])) for row in rows], np.uint64))
        hashes.append(np.array([row["phash"] or 0 for row in rows], np.uint64))
        hashed.append(np.array([row["phash"] is not None for row in rows], np.bool_))
    known, phash, has_phash = np.concatenate(contents), np.concatenate(hashes), np.concatenate(hashed)
    order = np.argsort(known, kind="stable")
    places = np.minimum(np.searchsorted(known[order], content), max(0, len(known) - 1))
    missing = known[order][places] != content if len(known) else np.ones(len(content), np.bool_)
    if missing.any():
        raise ValueError(f"--ledgers: {int(missing.sum())} of {len(content)} pictures are in no ledger, so their near "
                         "copies are not known; name the raw folders of all captioned shards, or give "
                         "--without-near")  # fmt: skip
    return phash[order][places], has_phash[order][places]


def joined(parts: Sequence[Hashes]) -> Hashes:
    return Hashes(
        np.concatenate([each.content for each in parts]),
        np.concatenate([each.urls for each in parts]),
        np.concatenate([each.phash for each in parts]),
        np.concatenate([each.has_phash for each in parts]),
    )


def kept_rows(tar: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The kept rows of a ledger, one for each sample, in order. Raises ValueError when they do not fit the shard."""
    samples = read_receipt(tar).samples
    rows = [row for row in read_ledger(ledger_path(tar), columns) if row["status"] == "kept"]
    if len(rows) != samples:
        raise ValueError(
            f"{ledger_path(tar)}: has {len(rows)} kept rows, but the receipt says {samples} samples; "
            "remove the receipt and run data_prep.download again"
        )
    return rows


def evaluation_hashes(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, perceptual hash) of the pictures of an evaluation: of downloaded shards, else of all image files below the
    folder, also in symlinked folders.

    Flat pictures have no hash and are left out. Raises ValueError, with folder or file, when there is no picture, or
    one cannot be read: training on it would not be noticed.
    """
    tars = finished_shards(folder) if folder.is_dir() else []
    files = [] if tars else sorted(path for path in _files_below(folder) if path.suffix.lower() in ENDINGS)
    if not tars and not files:
        raise ValueError(f"--evaluation {folder}: is not a folder with shards or pictures")
    for tar in tars:
        for row in kept_rows(tar, ("status", "url", "phash")):
            if isinstance(row["phash"], int):
                yield str(row["url"]), row["phash"]
    for path in files:
        if (phash := _hash_of_file(path)) is not None:
            yield path.relative_to(folder).as_posix(), phash


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file below; each folder is read once, even if several symlinks lead to it. Raises ValueError on a symlink
    whose target is missing, and on a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"--evaluation {error.filename}: cannot be read ({error.strerror})") from error

    seen: set[Path] = set()
    for name, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(name)
        if (place := here.resolve()) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()  # of two paths to one folder, always the same one is taken
        for path in (here / file for file in files):
            if path.is_symlink() and not path.exists():
                raise ValueError(f"--evaluation {path}: the target of this symlink is missing; repair or remove it")
            yield path


def _hash_of_file(path: Path) -> int | None:
    from data_prep.raw.stored_image import ImageLimits, StoredImage, store
    from pipeline.pictures.decoding import read_picture

    try:
        content = read_picture(path)
    except ValueError as error:
        raise ValueError(f"--evaluation {error}; repair or remove it") from error
    stored = store(content, ImageLimits(1, LONGEST_SIDE_PX, MAX_PIXELS))
    if not isinstance(stored, StoredImage):
        raise ValueError(f"--evaluation {path}: cannot be read as a picture ({stored.reason}); repair or remove it")
    return stored.phash


def _text_hashes(texts: list[object]) -> NDArray[np.uint64]:
    import pandas as pd

    hashes: NDArray[np.uint64] = pd.util.hash_array(np.array(texts, dtype=object), categorize=False)
    return hashes
