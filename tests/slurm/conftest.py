"""A real SLURM cluster for a file's tests (what one breaks is not the next one's), a home for jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster, NoClusterError, running_cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def num_nodes() -> int:
    return 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, num_nodes: int) -> Iterator[Cluster]:
    try:
        with running_cluster(tmp_path_factory.mktemp("cluster"), num_nodes) as started:
            yield started
    except NoClusterError as error:
        pytest.skip(f"no SLURM here: {error}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A BLIP2_HOME whose python runs `training` in a rank or task, and says of any recipe that it can use two nodes.

    Stage 1's recipe writes to `one`, from which stage 2's and fine-tuning's start.
    """
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/bash\ncd {tmp_path}\necho "$@" >>asked\n'
        'case "$*" in *recipe_facts*stage2*run.output) echo two ;;\n'
        "*recipe_facts*tune*run.output) echo tuned ;; "
        "*recipe_facts*--field*) echo one ;;\n"
        "*recipe_facts*) echo 2 ;; *TASKS*) echo vqa ;; *) . ./training ;; esac\n"
    )
    python.chmod(0o755)
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    return tmp_path
