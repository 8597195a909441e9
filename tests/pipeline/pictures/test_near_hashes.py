"""The search among many hashes finds what comparing every pair finds."""

import numpy as np
import pytest

from pipeline.pictures.near_hashes import first_near


def by_all_pairs(hashes: np.ndarray, bits_apart: int) -> np.ndarray:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    return (distances <= bits_apart).argmax(axis=1)


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Hashes in families, whose members differ in a few bits; some families crowd into the same high bits."""
    centres = rng.integers(0, 1 << 63, count // 8, dtype=np.uint64)
    centres[: count // 32] &= np.uint64(0xFFFFFF)
    hashes = rng.choice(centres, count)
    for _ in range(4):
        flips = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
        hashes = np.where(rng.random(count) < 0.5, hashes ^ flips, hashes)
    return hashes


@pytest.mark.parametrize("bits_apart", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 40, 1500])
def test_it_finds_what_all_pairs_find(bits_apart: int, count: int) -> None:
    hashes = clustered(np.random.default_rng(count), max(count, 8))[:count]
    found = first_near(hashes, bits_apart)
    np.testing.assert_array_equal(found, by_all_pairs(hashes, bits_apart))
    assert count < 1000 or bits_apart == 0 or (found < np.arange(count)).sum() > 50  # or there was nothing to find


def test_no_hashes_have_no_neighbours() -> None:
    assert len(first_near(np.array([], np.uint64), 3)) == 0
