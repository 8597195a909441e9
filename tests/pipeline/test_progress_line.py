"""How far a command is: plain lines at a steady pace without a terminal, one rewritten line within one."""

import io
import re
import sys
import time
from pathlib import Path

import pytest

from pipeline import progress_line
from pipeline.progress_line import ProgressLine, _duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_it_says_how_much_is_done_how_fast_and_when_it_ends(clock: list[float]) -> None:
    line = ProgressLine("captioning", 10_000, "pictures")
    clock[0] += 60
    line.advance(1230)
    assert line.text() == "captioning: 1,230 of 10,000 pictures (12%), 20.5 a second, 7 min left"
    line.note = "loss 2.5"
    clock[0] += 60
    line.advance(1230)
    assert line.text() == "captioning: 2,460 of 10,000 pictures (24%), 20.5 a second, 6 min left, loss 2.5"


def test_the_rate_is_that_of_the_last_minutes(clock: list[float]) -> None:
    line = ProgressLine("training", 10**6, "steps", done=500)
    for _ in range(20):
        clock[0] += 60
        line.advance(600)
        line.text()
    for _ in range(5):
        clock[0] += 60
        line.advance(60)
        text = line.text()
    assert "1.0 a second" in text and text.startswith("training: 12,800 of 1,000,000 steps (1%)")


def test_what_was_done_before_is_no_speed(clock: list[float]) -> None:
    line = ProgressLine("exporting", 1000, "pictures")
    line.skip(900)
    clock[0] += 50
    line.advance(10)
    assert line.text() == "exporting: 910 of 1,000 pictures (91%), 5.0 s each, 8 min left"


def test_without_a_total_or_a_unit_it_says_what_it_knows(clock: list[float]) -> None:
    rows, opaque = ProgressLine("cc3m-000", unit="rows"), ProgressLine("SPICE of 5,000 captions")
    clock[0] += 120
    rows.advance(40_000)
    assert rows.text() == "cc3m-000: 40,000 rows, 333.3 a second, 2 min so far"
    assert opaque.text() == "SPICE of 5,000 captions: 2 min so far"
    assert ProgressLine("indexing", 0, "shards").text() == "indexing: 0 of 0 shards (0%), 0.0 s so far"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.54, "2.5 s"), (40.4, "40 s"), (3599, "1 h 00 min"), (11_100, "3 h 05 min"), (183_600, "2 d 3 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, quiet: bool = False) -> str:
    """What a piece of work writes to stderr that takes three looks and counts nothing meanwhile."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("EVERY_S", "EVERY_S_IN_TERMINAL"):
        monkeypatch.setattr(progress_line, name, 0.02)
    for _ in ProgressLine("reading", 2, "shards", shown=not quiet).follow([1]):
        deadline = time.monotonic() + (0.1 if quiet else 30)
        while time.monotonic() < deadline and len(re.findall("reading", stream.getvalue())) < 3:
            time.sleep(0.01)
    return stream.getvalue()


def test_without_a_terminal_each_look_is_a_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert len(lines) >= 3
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d reading: 0 of 2 shards \(0%\), 0\.\d s so far", line) for line in lines)


def test_in_a_terminal_one_line_rewrites_itself_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "\n" not in text and text.count("\r") >= 4 and text.endswith("\r\x1b[K")


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False, quiet=True) == ""


def test_it_ends_with_an_error_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ProgressLine("reading")
    with pytest.raises(ValueError, match="damaged"), line:
        raise ValueError("damaged")
    assert line._thread is not None and not line._thread.is_alive()


def test_there_is_no_other() -> None:
    """One look for all commands: what shows progress of its own would be tqdm."""
    root = Path(__file__).parents[2]
    for room in ("data_prep", "eval", "pipeline"):
        assert not [path for path in (root / room).rglob("*.py") if re.search(r"\btqdm\b", path.read_text())]
