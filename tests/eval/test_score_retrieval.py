"""Scores of retrieval from its matrix file: recalls both ways beside chance, their means, and a damaged file."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.eval.test_score import rows, run


def test_retrieval_rows_beside_chance(tmp_path: Path) -> None:
    images, texts = 8, 24
    rng = np.random.default_rng(0)
    text_image = np.arange(texts) % images
    itc = rng.random((images, texts)).astype(np.float32) + 2 * (text_image == np.arange(images)[:, None])
    itm = np.where(text_image == np.arange(images)[:, None], 5.0, -5.0)
    np.savez(tmp_path / "scores.npz", itc=itc, itm=itm, text_image=text_image, k_test=128)
    output = tmp_path / "metrics.json"
    assert run("retrieval", "--predictions", tmp_path / "scores.npz", "--output", output) == 0
    table = rows(output)
    for direction in ("tr", "ir"):
        for protocol in ("ret/itc", "ret/k128/itm+itc"):
            assert table[f"{direction}_at_1", protocol, "overall"]["value"] == 100
    assert table["ir_at_1", "ret/chance", "overall"]["value"] == 12.5
    assert json.loads(output.read_text())["n"] == images


def test_mean_recall_is_the_mean_of_six_recalls_with_an_interval_over_images(tmp_path: Path) -> None:
    rng, text_image = np.random.default_rng(1), np.repeat(np.arange(20), [1, 2, 3, 4] * 5)
    itc = rng.random((20, 50)) + 0.4 * (text_image == np.arange(20)[:, None])
    np.savez(tmp_path / "scores.npz", itc=itc, itm=itc[::-1], text_image=text_image, k_test=20)
    assert run("retrieval", "--predictions", tmp_path / "scores.npz", "--output", tmp_path / "m.json") == 0
    table = rows(tmp_path / "m.json")
    for protocol in ("ret/itc", "ret/k20/itm+itc"):
        recalls = {at: [table[f"{at}_at_{k}", protocol, "overall"]["value"] for k in (1, 5, 10)] for at in ("tr", "ir")}
        for name, wanted in (
            ("tr_mean", recalls["tr"]),
            ("ir_mean", recalls["ir"]),
            ("mean_recall", [*recalls["tr"], *recalls["ir"]]),
        ):
            found = table[name, protocol, "overall"]
            assert (
                found["value"] == pytest.approx(np.mean(wanted), abs=2e-4)
                and found["low"] < found["value"] < found["high"]
            )


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scores.npz").write_text("no")
    assert run("retrieval", "--predictions", tmp_path / "scores.npz", "--output", tmp_path / "m.json") == 1
    assert "not a readable .npz" in capsys.readouterr().err
