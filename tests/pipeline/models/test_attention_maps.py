"""Maps of attention: the softmax of the pass that the model itself makes, laid on the picture's patches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import pipeline
from pipeline.models.attention_maps import on_grid, watched
from pipeline.models.qformer_layer import Attention, KeysValues
from tests.support.tiny_evaluation_sets import save_picture


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    for number in range(3):
        save_picture(tmp_path / f"{number}.png", number)
    return [Image.open(tmp_path / f"{number}.png") for number in range(3)]


@pytest.mark.parametrize("name", ["stage1", "t5", "tuned"])
def test_a_map_is_the_softmax_of_the_last_cross_attention(
    name: str, weights: dict[str, Path], pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by torch's own kernel from values that are one-hot: what is read is then the share of each token."""
    model = pipeline.load(weights[name])
    read: list[torch.Tensor] = []
    plain = Attention.attend

    def attend(own: Attention, queries: torch.Tensor, keys_values: KeysValues, mask: torch.Tensor | None) -> object:
        keys = keys_values[0]
        if keys.shape[2] == 17:  # the picture's 16 patches and CLS; there are 4 queries
            one_hot = torch.eye(17).expand(*keys.shape[:2], 17, 17)
            read.append(functional.scaled_dot_product_attention(queries, keys, one_hot).mean(dim=1))
        return plain(own, queries, keys_values, mask)

    monkeypatch.setattr(Attention, "attend", attend)
    maps = model.attention(pictures, "colour ?")
    expected = read[-1].reshape(3, 4, 17)[:, :, 1:].reshape(3, 4, 4, 4)
    np.testing.assert_allclose(maps, expected.numpy(), atol=1e-6)
    assert maps.dtype == np.float32 and len(read) > 1
    np.testing.assert_allclose(model.attention(pictures[1], "colour ?"), maps[1], atol=1e-6)
    assert (maps.sum(axis=(2, 3)) < 1).all() and np.abs(maps[0] - maps[1]).max() > 1e-3


def test_a_question_moves_the_attention_of_a_qformer_that_reads_it(
    weights: dict[str, Path], pictures: list[Image.Image]
) -> None:
    tuned, plain = pipeline.load(weights["tuned"]), pipeline.load(weights["t5"])
    assert np.abs(tuned.attention(pictures[0], "colour ?") - tuned.attention(pictures[0], "number ?")).max() > 1e-4
    np.testing.assert_array_equal(plain.attention(pictures[0], "colour ?"), plain.attention(pictures[0]))
    with pytest.raises(ValueError, match="was trained to read a question"):
        tuned.attention(pictures[0])


def test_watching_changes_nothing_and_ends(weights: dict[str, Path], pictures: list[Image.Image]) -> None:
    model = pipeline.load(weights["stage1"])
    before = model.embed(pictures)
    qformer = model.model.bridge.qformer
    with pytest.raises(KeyError), watched(qformer) as found:
        np.testing.assert_array_equal(model.embed(pictures), before)
        assert [each.shape for each in found] == [(3, 4, 17)] * 2
        torch.testing.assert_close(found[0].sum(dim=2), torch.ones(3, 4))
        raise KeyError
    model.embed(pictures)
    assert len(found) == 2


@pytest.mark.parametrize(("others", "side"), [(0, 14), (1, 16), (5, 14)])  # SigLIP, ViT-g, DINOv2 with registers
def test_other_tokens_come_before_the_patches(others: int, side: int) -> None:
    shares_BQP = torch.arange(-others, side * side).expand(2, 3, -1)
    torch.testing.assert_close(on_grid(shares_BQP), torch.arange(side * side).view(side, side).expand(2, 3, -1, -1))


def test_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="its 216 image tokens are no square of patches"):
        on_grid(torch.zeros(1, 1, 216))
