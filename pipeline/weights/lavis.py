"""LAVIS's `.pth` files: `{"model": state_dict}` of what BLIP-2 trains. No code of the file is run."""

import errno
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from pipeline.files import replacing
from pipeline.weights.names import inverse, lavis_name

if TYPE_CHECKING:
    from torch import Tensor

WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
BIAS = "Qformer.cls.predictions.bias"
TIED = {"Qformer.cls.predictions.decoder.weight": WORDS, "Qformer.cls.predictions.decoder.bias": BIAS}
"""Second names that LAVIS gives to a tensor."""
BUFFERS = ("Qformer.bert.embeddings.position_ids",)
VISION = "visual_encoder."
FROZEN = (VISION, "t5_model.", "opt_model.")
"""Towers, which some files hold beside the bridge; ours are loaded from the recipe's names."""


def read_file(path: Path) -> dict[str, "Tensor"]:
    """The state dict of a `.pth` file. Raises ValueError in one line when it is another file, or would run code."""
    import torch

    try:
        with warnings.catch_warnings():  # of pickle protocols and sparse tensors, which are refused below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for hostile and damaged files
        reason = "it would run code, or is damaged" if isinstance(error, UnpicklingError) else type(error).__name__
        if isinstance(error, OSError | RuntimeError):
            reason = str(error).splitlines()[0]
        raise ValueError(f"weights {path}: is no .pth file of plain tensors ({reason}); nothing was loaded") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"weights {path}: is not {{'model': {{name: tensor}}}}, the form that LAVIS writes")
    for name, value in state.items():
        if not (isinstance(name, str) and (name in BUFFERS or _is_plain(value))):
            raise ValueError(f"weights {path}: {name!r} is not a dense tensor of real floating-point numbers")
    return state


def _is_plain(value: object) -> bool:
    import torch

    if not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and value.is_floating_point()


def write_file(state: dict[str, "Tensor"], path: Path) -> None:
    """Write a state dict as LAVIS does, whole or not at all."""
    import torch

    with replacing(path) as file:
        try:
            torch.save({"model": state}, file)
        except RuntimeError as error:  # torch's name for a write that failed
            raise OSError(errno.ENOSPC, f"{path}: cannot be written ({str(error).splitlines()[0]})") from error


def to_lavis(tensors: dict[str, "Tensor"], language_kind: str | None) -> dict[str, "Tensor"]:
    """Our tensors under LAVIS's names, tied ones under both of theirs."""
    state = {lavis_name(name, language_kind): tensor for name, tensor in tensors.items()}
    if "temp" in state:
        state["temp"] = state["temp"].reshape(())
    return state | {second: state[first] for second, first in TIED.items() if first in state}


def from_lavis(
    state: dict[str, "Tensor"], own_names: list[str], language_kind: str | None, source: Path
) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"], list[str]]:
    """The bridge under our names, the towers' tensors by name, and skipped second names and buffers.

    Raises ValueError naming a tensor that has no place, or differs from its second name.
    """
    import torch

    ours = inverse((name, lavis_name(name, language_kind)) for name in own_names)
    tensors, towers, skipped = {}, {}, []
    for name, tensor in state.items():
        first = TIED.get(name)
        if first in state:
            if not torch.equal(state[first], tensor):
                raise ValueError(
                    f"weights {source}: {name!r} must be equal to {first!r}, and is not; the file is damaged"
                )
            skipped.append(name)
        elif name.startswith(FROZEN):
            towers[name] = tensor
        elif name in BUFFERS:
            skipped.append(name)
        elif name in ours:
            tensors[ours[name]] = tensor
        else:
            raise ValueError(f"weights {source}: {name!r} has no place in this model; check --recipe")
    if "temperature" in tensors and tensors["temperature"].numel() == 1:
        tensors["temperature"] = tensors["temperature"].reshape(1)
    return tensors, towers, skipped
