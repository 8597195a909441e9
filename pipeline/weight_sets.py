"""Weights folders that hold the same weights in several files: a loader takes one of them without a word."""

import json
import math
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

INDEX = ".index.json"
SETS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""Names of whole sets, in the order in which transformers and timm choose."""
PART = 1 << 22  # values that are compared at once
TOLERANCE = 0.01  # relative to the value: one set may be a rounded copy in another number format


def check_weight_sets(folder: Path) -> None:
    """Compare the tensors that two sets of a folder share: all values, in parts, which takes about a second a GB.

    Raises ValueError naming both files and the tensor when they differ. A set that is not readable is passed over: a
    loader reports the one that it takes.
    """
    there = [folder / name for name in SETS if (folder / name).is_file()]
    if len(there) < 2:
        return
    first = _tensors(there[0])
    for path in there[1:]:
        other = _tensors(path)
        for name in sorted(first.keys() & other.keys()):
            if _differ(first[name], other[name]):
                raise ValueError(
                    f"{folder}: {there[0].name} and {path.name} hold two sets of weights, which differ in {name!r}; "
                    "remove the wrong set"
                )


def _differ(one: Any, other: Any) -> bool:
    shapes = [tuple(each.get_shape() if hasattr(each, "get_shape") else each.shape) for each in (one, other)]
    if shapes[0] != shapes[1]:
        return True
    if not shapes[0] or 0 in shapes[0]:
        return 0 not in shapes[0] and _rows_differ(one[...], other[...])
    rows, width = shapes[0][0], math.prod(shapes[0][1:])
    step = max(1, PART // width)
    return any(_rows_differ(one[row : row + step], other[row : row + step]) for row in range(0, rows, step))


def _rows_differ(one: "Tensor", other: "Tensor") -> bool:
    import torch

    if any(torch.equal(one.to(kind), other.to(kind)) for kind in {one.dtype, other.dtype}):
        return False  # fast, and so are copies that were rounded to nearest; NaN is not equal to itself
    tolerance = 0.0 if one.dtype == other.dtype else TOLERANCE
    return not torch.allclose(one.float(), other.float(), rtol=tolerance, atol=tolerance * 1e-4, equal_nan=True)


def _tensors(path: Path) -> dict[str, Any]:
    """The tensors of a set by name, read when they are sliced; none where it is not readable."""
    found: dict[str, Any] = {}
    with suppress(Exception):  # damaged files make torch, safetensors and json raise many kinds
        files = [path]
        if path.name.endswith(INDEX):
            names = set(json.loads(path.read_text("utf-8"))["weight_map"].values())
            files = [path.parent / Path(name).name for name in sorted(names)]
        for file in files:
            found |= _lazily(file)
    return found


def _lazily(file: Path) -> dict[str, Any]:
    import torch
    from safetensors import safe_open

    if file.suffix == ".safetensors":
        opened: Any = safe_open(file, framework="pt")
        return {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
    # Files of torch before 1.6 are no archives, and are read whole.
    tensors: dict[str, Any] = torch.load(file, "cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    return tensors
