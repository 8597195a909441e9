"""Retrieval at any number of ranks: the same scores and recalls to the bit, and less memory in each rank."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.recall import top_k
from eval.score import main as score
from tests.support.gloo_ranks import run_on_ranks
from tests.support.table_retrieval import TableModel, rank_gallery, save_gallery


def ranked(root: Path, ranks: int, images: int, texts: int, levels: int, k: int, batch_size: int) -> list[float]:
    """Scores of a gallery on so many real ranks, left in `root/{ranks}`; each rank's memory in MB."""
    data = save_gallery(root / f"pictures{ranks}", images, texts)
    (root / str(ranks)).mkdir()
    return run_on_ranks(ranks, rank_gallery, data, root / str(ranks), levels, k, batch_size, deadline_s=1500)


def scored(folder: Path) -> bytes:
    files = ("--predictions", folder / "scores.npz", "--output", folder / "metrics.json")
    assert score(["retrieval", *map(str, files)]) == 0
    return (folder / "metrics.json").read_bytes()


def test_scores_and_recalls_are_bit_equal_at_every_number_of_ranks(tmp_path: Path) -> None:
    """Also with ties, ranks that have no batch, and texts that fill no whole block."""
    images, texts, k = 29, 300, 9
    found = {}
    for ranks in (1, 2, 3, 7, 8):
        ranked(tmp_path, ranks, images, texts, levels=3, k=k, batch_size=5)
        found[ranks] = scored(tmp_path / str(ranks))
    assert len(set(found.values())) == 1 and "any-tie-order" in found[1].decode()
    arrays = [np.load(tmp_path / str(ranks) / "scores.npz") for ranks in found]
    for name in arrays[0].files:
        for other in arrays[1:]:
            assert arrays[0][name].tobytes() == other[name].tobytes()

    model = TableModel(images, texts, 3)  # and they are those of a plain loop
    itc = (model.image_NE @ model.text_TE.T).numpy()
    assert np.array_equal(arrays[0]["itc"], itc)
    wanted = np.zeros_like(itc, dtype=bool)
    for image in range(images):
        wanted[image, top_k(itc[image], k)] = True
    for text in range(texts):
        wanted[top_k(itc[:, text], k), text] = True
    itm = (31 * np.arange(images)[:, None] + np.arange(texts)) % 17 / 4 - 2
    assert np.array_equal(arrays[0]["itm"], np.where(wanted, itm, np.nan).astype(np.float32), equal_nan=True)


@pytest.mark.large
def test_cocos_gallery_is_bit_equal_and_takes_less_memory_in_each_of_more_ranks(tmp_path: Path) -> None:
    """5,000 images and 25,010 texts: the scores of all pairs are 500 MB, a rank holds none of the matrix whole."""
    recalls, memory = {}, {}
    for ranks in (1, 4):
        memory[ranks] = max(ranked(tmp_path, ranks, 5000, 25010, levels=1000, k=128, batch_size=64))
        rows = json.loads(scored(tmp_path / str(ranks)))["metrics"]
        recalls[ranks] = [(row["name"], row["protocol"], row["value"]) for row in rows]
    print(f"most memory of a rank, MB: {memory}")
    assert recalls[1] == recalls[4]
    assert memory[4] < memory[1] < 500
