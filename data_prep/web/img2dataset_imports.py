"""Imports of img2dataset that this project leaves out."""

import sys
from types import ModuleType

UNUSED = ("wandb", "albumentations")
"""What img2dataset imports in each of its processes, for seconds, without using it here: it logs to no service, and the
pictures are resized when the shards are written. Empty modules stand in, so that any use would fail loudly."""


def leave_out_unused() -> None:
    # None in sys.modules makes an import fail; its type does not say so.
    sys.modules |= {"torch": None, **{name: ModuleType(name) for name in UNUSED}}  # type: ignore[dict-item]
