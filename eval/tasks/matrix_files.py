"""Matrices larger than a rank should hold: rows are appended to a .npy, and the ranks' files are merged in order."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.files import replacing

Floats = NDArray[np.float32]


def write_rows(path: Path, blocks: Iterable[Floats], width: int) -> None:
    """Write blocks [b, width] as the rows of one fp32 .npy, whole or not at all; one block is in memory at a time."""
    rows = 0
    with replacing(path) as file:
        _write_header(file, 0, width)
        start = file.tell()
        for block in blocks:
            assert block.shape[1] == width
            file.write(np.ascontiguousarray(block, dtype=np.float32).tobytes())
            rows += len(block)
        file.seek(0)
        _write_header(file, rows, width)
        assert file.tell() == start, "numpy pads its header for a length that grows"


def _write_header(file: object, rows: int, width: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]  # numpy asks for more of a file than it uses


def interleave(parts: list[Path], target: Path, batch_size: int, total: int) -> None:
    """The ranks' rows in order: batch b of the whole list was rank b mod W's next one."""
    opened = [np.load(part, mmap_mode="r") for part in parts]
    taken = [0] * len(parts)

    def batches() -> Iterable[Floats]:
        for batch, start in enumerate(range(0, total, batch_size)):
            rank, size = batch % len(parts), min(batch_size, total - start)
            yield opened[rank][taken[rank] : taken[rank] + size]
            taken[rank] += size

    write_rows(target, batches(), opened[0].shape[1])
