"""Replaces imports of img2dataset that this project does not use."""

import sys
from types import ModuleType

UNUSED = ("wandb", "albumentations")
"""Modules that img2dataset imports in each of its processes, which takes seconds, but does not use here: nothing is
logged to a service, and pictures are resized when the shards are written. Empty modules replace them, so any use is an
error."""


def leave_out_unused() -> None:
    # None in sys.modules makes an import fail; the type of sys.modules does not allow it.
    sys.modules |= {"torch": None, **{name: ModuleType(name) for name in UNUSED}}  # type: ignore[dict-item]
