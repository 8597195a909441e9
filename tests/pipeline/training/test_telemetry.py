"""What a run logs of its speed."""

import json
from pathlib import Path

import pytest

from pipeline.training.telemetry import Telemetry


def logged(folder: Path, utilisation: float | None) -> dict[str, float]:
    folder.mkdir()
    with Telemetry(folder, 0, 10, utilisation) as telemetry:
        telemetry.log(5, 40, {"loss": 1.0}, 8)
    [line] = (folder / "metrics.jsonl").read_text().splitlines()
    found: dict[str, float] = json.loads(line)
    return found


def test_utilisation_is_logged_where_a_peak_is_known_and_nowhere_else(tmp_path: Path) -> None:
    line = logged(tmp_path / "gpu", 2e-4)
    assert line["model_flop_utilisation"] == pytest.approx(2e-4 * line["samples_per_s"])
    assert "model_flop_utilisation" not in logged(tmp_path / "cpu", None)
