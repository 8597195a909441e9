"""Finds where every sample of a tar is: by a scan of the tar, or from the offset table beside a manifest."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.shards.sample_json import KEY_PATTERN
from data_prep.shards.ustar import BLOCK, padded, read_header
from pipeline.data.manifest import PLACES, Manifest, Shard


def offset_table(tar: Path) -> NDArray[np.int64]:
    """int64 [samples, 4]: (jpg offset, jpg bytes, json offset, json bytes), from a strict scan of the tar's headers.

    The tar must hold pairs of regular files `KEY.jpg`, `KEY.json` with distinct keys, and then the end-of-archive
    blocks. Raises ValueError, with the name of the tar, on everything else.
    """
    if not tar.is_file():
        raise ValueError(f"{tar}: is not a regular file")
    size = tar.stat().st_size
    rows: list[tuple[int, int, int, int]] = []
    keys: set[str] = set()
    with tar.open("rb") as file:
        offset = 0
        while (jpeg := read_header(file, tar, offset, size)) is not None:
            key, _, ending = jpeg.name.partition(".")
            if not KEY_PATTERN.fullmatch(key) or ending != "jpg" or key in keys:
                raise ValueError(f"{tar}: unexpected member {jpeg.name!r} at byte {offset}, expected a new KEY.jpg")
            offset += BLOCK + padded(jpeg.size)
            text = read_header(file, tar, offset, size)
            if text is None or text.name != f"{key}.json":
                raise ValueError(f"{tar}: {jpeg.name!r} is not followed by {key}.json at byte {offset}")
            rows.append((jpeg.offset_data, jpeg.size, text.offset_data, text.size))
            keys.add(key)
            offset += BLOCK + padded(text.size)
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def checked_offsets(manifest: Manifest, shard: Shard) -> NDArray[np.int64]:
    """As `Manifest.table`. Raises ValueError, with the file's name, when the table is damaged or points past its
    tar."""
    table = manifest.table(shard)
    places = table[:, :PLACES]
    # An offset just below the end is not refused here, but gives a short read, which is an error too.
    if places.size and (places.min() < 0 or places.max() > shard.bytes):
        raise ValueError(
            f"{manifest.root / shard.index}: points past the {shard.bytes} bytes of its tar; run data_prep.index again"
        )
    return table
