"""One thread a process and no network: set before anything imports torch, and inherited by every process started."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    NO_ALBUMENTATIONS_UPDATE="1",
    WANDB_MODE="disabled",
)


@pytest.fixture(autouse=True)
def torch_stays_as_it_was() -> Iterator[None]:
    """A training run inside a test chooses the attention kernel of its whole process; the next test has the default."""
    yield
    if torch := sys.modules.get("torch"):
        torch.backends.cuda.enable_flash_sdp(True)
