"""Score matrices that are no score matrices: one line that names the file and the field."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.eval.test_score import run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itm": np.full((4, 4), "a")}, "itm holds <U1; save it as real numbers"),
        ({"itm": np.eye(4) * 1j}, "itm holds complex128"),
        ({"itm": np.full((4, 4), np.nan)}, "itm has no score at all"),
        ({"itc": np.eye(4) * 1j}, "itc holds complex128"),
        ({"text_image": np.arange(4) * 1j}, "text_image holds complex128"),
        ({"text_image": np.array([0, 1, np.nan, 3])}, "text_image[2] is nan, not a whole number"),
        ({"text_image": np.array([0, 1, np.inf, 3])}, "text_image[2] is inf"),
        ({"k_test": 2.7}, "k_test 2.7, expected one whole number"),
        ({"k_test": np.nan}, "k_test nan, expected one whole number"),
        ({"k_test": np.inf}, "k_test inf, expected one whole number"),
        ({"k_test": "a"}, "k_test holds <U1; save it as real numbers"),
        ({"k_test": np.array([])}, "k_test [], expected one whole number"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_score_matrices_of_anything_but_numbers_are_one_line_that_names_the_field(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "s.npz", tmp_path / "m.json"
    np.savez(path, **({"itc": np.eye(4), "itm": np.eye(4), "text_image": np.arange(4), "k_test": 2} | change))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("retrieval", "--predictions", path, "--output", output) == 1
    error = capsys.readouterr().err
    assert f"{path}: {message}" in error and error.count("\n") == 1 and not output.exists()


def test_a_spoilt_archive_of_scores_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.npz"
    np.savez_compressed(path, itc=np.random.default_rng(0).random((40, 40)), text_image=np.arange(40))
    content = bytearray(path.read_bytes())
    content[200:400] = b"x" * 200
    for spoilt in (bytes(content), b""):
        path.write_bytes(spoilt)
        assert run("retrieval", "--predictions", path, "--output", tmp_path / "m.json") == 1
        error = capsys.readouterr().err
        assert f"{path}: not a readable .npz" in error and error.count("\n") == 1
