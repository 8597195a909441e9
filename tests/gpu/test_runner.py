"""The runner of `make gpu`: what a part reports, and what becomes of one that ends early, fails, or has no time."""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import run
from tests.gpu.checks import Checks
from tests.gpu.plan import PARTS, Part
from tests.gpu.profiling import merged
from tests.gpu.results_page import write_page
from tests.gpu.run import line_of, reported, started

[CEILINGS] = [part for part in PARTS if part.name == "ceilings"]


def options_of(folder: Path, budget_s: float = 300.0) -> argparse.Namespace:
    return argparse.Namespace(output=folder, device="cpu", tiny=True, budget_s=budget_s)


def by_check(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["check"]: line for line in lines}


def test_every_part_has_its_function_and_a_limit_within_the_budget() -> None:
    root = Path(__file__).parents[2]
    for part in PARTS:
        source = (root / Path(*part.module.split(".")).with_suffix(".py")).read_text()
        assert f"\ndef {part.function}(checks: Checks) -> None:" in source, part
        assert 0 < part.limit_s <= 150


def test_a_part_runs_in_a_process_and_its_lines_come_back(tmp_path: Path) -> None:
    lines = by_check(started(CEILINGS, options_of(tmp_path), time.monotonic()))
    assert all(line["ok"] for line in lines.values()), lines
    assert lines["the copy is equal"]["value"] is True and lines["seconds"]["value"] > 0
    assert lines["copy, GB/s read and written"]["bound"] == "a number"  # no bound of speed on a CPU


@pytest.mark.parametrize("name", ["capfilt", "overlap", "rerank"])
def test_parts_pass_in_tiny_sizes_on_a_cpu(name: str, tmp_path: Path) -> None:
    """Those that take seconds: they use what the commands use, and would find a changed name."""
    [part] = [part for part in PARTS if part.name == name]
    lines = started(part, options_of(tmp_path), time.monotonic())
    assert len(lines) > 1 and all(line["ok"] for line in lines), lines


def test_a_part_that_fails_is_told_with_its_error(tmp_path: Path) -> None:
    (tmp_path / CEILINGS.name).write_text("a file where the part's folder is to be")
    lines = by_check(started(CEILINGS, options_of(tmp_path), time.monotonic()))
    assert not lines["exit code"]["ok"] and "FileExistsError" in lines["exit code"]["value"]
    assert lines["seconds"]["ok"]


def test_a_part_that_hangs_is_ended_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LEAST_S", 0.5)
    began = time.monotonic() - 299.0  # of 300: the part has one second, and its imports alone need more
    slow = Part("training", "tests.gpu.training", 100)
    lines = by_check(started(slow, options_of(tmp_path), began))
    assert not lines["seconds"]["ok"] and "exit code" not in lines


def test_a_part_without_time_does_not_begin(tmp_path: Path) -> None:
    [line] = started(CEILINGS, options_of(tmp_path), time.monotonic() - 295.0)
    assert line["check"] == "began" and not line["ok"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [False, True])
def test_the_table_the_page_and_the_exit_code_say_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: bool
) -> None:
    lines = [line_of("one", "a <b>", 3.5, "<= 4", True), line_of("two", "other", 9, "== 8", not bad)]
    assert reported(lines, options_of(tmp_path)) == int(bad)
    assert ("FAILED" in capsys.readouterr().out) == bad
    page = (tmp_path / "results.html").read_text()
    assert "a &lt;b&gt;" in page and ("What failed" in page) == bad


def test_the_page_shows_the_longest_kernels(tmp_path: Path) -> None:
    (tmp_path / "stage1").mkdir()
    rows = [{"kernel": "gemm_x", "ms_a_step": 1.25, "times_a_step": 40.0}]
    (tmp_path / "stage1" / "profile_kernels.json").write_text(json.dumps(rows))
    write_page([line_of("profile", "busy", 0.95, ">= 0.9", True)], tmp_path)
    assert "gemm_x" in (tmp_path / "results.html").read_text()


@pytest.mark.parametrize(("value", "ok"), [(0.5, True), (0.7, False), (math.nan, False)])
def test_a_value_beyond_its_bound_or_not_a_number_fails(
    capsys: pytest.CaptureFixture[str], value: float, ok: bool
) -> None:
    checks = Checks("part", "cuda", False, Path())
    checks.at_most("most", value, 0.6)
    checks.figure("figure", value, most=0.6)
    checks.at_least("least", -value, -0.6)
    found = [json.loads(line)["ok"] for line in capsys.readouterr().out.splitlines()]
    assert found == [ok] * 3


def test_an_error_is_a_failed_check_and_the_part_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Checks("part", "cpu", True, Path()).guarded("risky"):
        raise RuntimeError("no kernel\nof this kind")
    line = json.loads(capsys.readouterr().out)
    assert line["check"] == "risky" and not line["ok"] and line["value"] == "RuntimeError: no kernel of this kind"


def test_spans_that_overlap_count_once() -> None:
    assert merged([(0.0, 2.0), (1.0, 3.0), (1.5, 1.8), (5.0, 6.0)]) == [(0.0, 3.0), (5.0, 6.0)]
