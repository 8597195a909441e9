"""Sets learned position embeddings to sines and cosines at the start; a small text tower then learns word order
sooner."""

from typing import Any


def start_from_waves(positions_LH: Any, std: float) -> None:
    """Overwrite in place, with standard deviation `std`: "the word before" is then the same rotation everywhere."""
    import torch

    length, width = positions_LH.shape
    frequencies = torch.exp(-torch.arange(0, width, 2) / width * torch.log(torch.tensor(float(length))))
    angles = torch.arange(length)[:, None] * frequencies
    with torch.no_grad():
        positions_LH.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) * std * 2**0.5)
