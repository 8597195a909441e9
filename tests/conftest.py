"""One thread a process and no network: set before anything imports torch, and inherited by every process started."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    NO_ALBUMENTATIONS_UPDATE="1",
    WANDB_MODE="disabled",
)
if not list(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the job of these tests may have been allotted GPUs that are not here


LONGEST_FIRST = (
    "test_training_jobs.py",
    "test_demo.py",
    "test_data_jobs.py",
    "test_eval_jobs.py",
    "test_job_scripts.py",
    "test_stops.py",
    "test_faults.py",
    "test_zero.py",
    "test_kills.py",
    "test_hostile_files.py",
    "test_run.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: begun last, one of them would leave the other workers idle."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    from tests.support.small_disk import mounted

    with mounted(tmp_path / "small", "64k") as folder:
        yield folder


@pytest.fixture(autouse=True)
def torch_stays_as_it_was() -> Iterator[None]:
    """A training run inside a test chooses the attention kernel of its whole process; the next test has the default."""
    yield
    if torch := sys.modules.get("torch"):
        torch.backends.cuda.enable_flash_sdp(True)
