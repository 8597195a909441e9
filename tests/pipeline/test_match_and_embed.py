"""`pipeline.match` and `pipeline.embed`: scores and features of a trained model, in files and in order."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

import pipeline
from pipeline.embed import main as embed
from pipeline.match import main as match
from pipeline.trained_model import Model
from tests.support.tiny_evaluation_sets import save_picture

TEXTS = ["a red picture", "the number 2", "a dark blue photo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, and a damaged one among them."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        save_picture(root / f"{number}.png", number)
    (root / "3b.png").write_bytes((root / "3.png").read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def model(weights: dict[str, Path]) -> Model:
    return pipeline.load(weights["stage1"])


@pytest.fixture(scope="module")
def paths(folder: Path) -> list[Path]:
    return [folder / f"{number}.png" for number in range(6)]


def test_every_pair_has_both_scores(
    weights: dict[str, Path], model: Model, folder: Path, paths: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(weights["stage1"]), "--image", str(folder), "--text", *TEXTS, "--batch-size", "2"]
    assert match(command) == 1
    output, errors = capsys.readouterr()
    found = [json.loads(line) for line in output.splitlines()]
    assert [(each["image"], each["text"]) for each in found] == [(str(p), text) for p in paths for text in TEXTS]
    expected = model.match(paths, TEXTS)
    np.testing.assert_allclose([each["itc"] for each in found], expected.itc.ravel(), atol=1e-5)
    np.testing.assert_allclose([each["itm"] for each in found], expected.itm.ravel(), atol=1e-5)
    assert "3b.png: is not readable as a picture" in errors and "1 of 7 was left out" in errors


@pytest.mark.parametrize("best", [2, 4, 99])
def test_a_search_ranks_the_candidates_of_itc_by_itm(
    best: int, weights: dict[str, Path], model: Model, folder: Path, paths: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = ["--weights", str(weights["stage1"]), "--search", TEXTS[0], str(folder), "--best", str(best)]
    assert match(command) == 1
    found = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    scores = model.match(paths, TEXTS[0])
    candidates = sorted(range(6), key=lambda place: -scores.itc[place])[:best]
    assert found == [str(paths[place]) for place in sorted(candidates, key=lambda place: -scores.rerank[place])]
    assert candidates != sorted(candidates, key=lambda place: -scores.rerank[place]) or best == 2, "ITM matters"


@pytest.mark.parametrize("pooled", ["none", "mean"])
def test_both_formats_hold_the_features_beside_their_names(
    pooled: str, weights: dict[str, Path], model: Model, folder: Path, paths: list[Path], tmp_path: Path
) -> None:
    pictures, texts = model.embed(paths, pooled=pooled), model.embed(text=TEXTS)  # type: ignore[arg-type]
    command = ["--weights", str(weights["stage1"]), "--image", str(folder), "--text", *TEXTS, "--batch-size", "2"]
    for name in ("features.npz", "features.parquet"):
        assert embed([*command, "--pooled", pooled, "--output", str(tmp_path / name)]) == 1
    with np.load(tmp_path / "features.npz") as found:
        assert found["image"].tolist() == [str(path) for path in paths] and found["text"].tolist() == TEXTS
        np.testing.assert_allclose(found["image_features"], pictures, atol=1e-5)
        np.testing.assert_allclose(found["text_features"], texts, atol=1e-5)
    table = parquet.read_table(tmp_path / "features.parquet").to_pandas()
    images = table[table["kind"] == "image"]
    np.testing.assert_allclose(np.stack(images["feature"]).reshape(pictures.shape), pictures, atol=1e-5)
    queries = 4 if pooled == "none" else 1
    assert images["name"].tolist() == [str(path) for path in paths for _ in range(queries)]
    assert images["query"].isna().all() if pooled == "mean" else images["query"].tolist() == [0, 1, 2, 3] * 6
    of_texts = table[table["kind"] == "text"]
    assert of_texts["name"].tolist() == TEXTS
    np.testing.assert_allclose(np.stack(of_texts["feature"]), texts, atol=1e-5)


def test_wrong_usage_is_one_line_and_leaves_nothing(
    weights: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage1, stage2, picture = str(weights["stage1"]), str(weights["t5"]), str(folder / "0.png")
    cases = [
        (embed, [stage1, "--output", "a.npz"], "argument --image: is missing"),
        (embed, [stage1, "--image", picture, "--output", "a.csv"], "is of no known format"),
        (embed, [stage2, "--image", picture, "--output", str(tmp_path / "a.npz")], "this needs weights of stage 1"),
        (match, [stage1, "--image", picture], "argument --search: give it alone"),
        (match, [stage1, "--search", "red", str(folder), "--text", "red"], "argument --search: give it alone"),
        (match, [stage2, "--search", "red", str(folder)], "this needs weights of stage 1"),
    ]
    for main, flags, message in cases:
        try:
            assert main(["--weights", *flags]) == 1
        except SystemExit as end:
            assert end.code == 2
        errors = capsys.readouterr().err
        assert message in errors and errors.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ["", " ", 3, None])
def test_an_empty_text_is_one_line(model: Model, paths: list[Path], text: object) -> None:
    with pytest.raises(ValueError, match="is no text with a word; give one"):
        model.match(paths[0], [text])
    with pytest.raises(ValueError, match="is no text with a word; give one"):
        model.embed(text=["a", text])
