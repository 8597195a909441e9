"""A real SLURM cluster of five nodes for the tests of a file: what one breaks is not the next one's."""

from collections.abc import Iterator

import pytest

from tests.support.slurm_cluster import Cluster, NoClusterError, running_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        with running_cluster(tmp_path_factory.mktemp("cluster"), nodes=5) as started:
            yield started
    except NoClusterError as error:
        pytest.skip(f"no SLURM here: {error}")
