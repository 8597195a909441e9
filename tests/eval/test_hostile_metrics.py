"""A metrics.json that is hostile or damaged: watching, curves, selection and report name it, and end soon."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from eval import curves, report, select, watch
from tests.eval.test_select import Run
from tests.eval.test_watch import SBATCH

DEADLINE_S = 60


def number(text: str) -> Callable[[Path], None]:
    """The value of the first row as this JSON text."""
    return lambda path: void(path.write_text(path.read_text().replace("140.0", text, 1)))


def row(**fields: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        content["metrics"][0] |= fields
        path.write_text(json.dumps(content))

    return spoil


def text(content: str) -> Callable[[Path], None]:
    return lambda path: void(path.write_text(content))


def void(_: object) -> None:
    """Nothing, of an expression."""


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


HOSTILE: dict[str, Callable[[Path], None]] = {
    "deep": text("[" * 100_000 + "]" * 100_000),
    "deep in a field": text('{"task": "captions", "n": 1, "metrics": [], "x": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "NaN": number("NaN"),
    "Infinity": number("-Infinity"),
    "beyond a double": number("1e999"),
    "many digits": number("9" * 6000),
    "an integer beyond a double": number("9" * 400),
    "true": number("true"),
    "a text for a number": number('"140"'),
    "null": number("null"),
    "a list for a name": row(name=["cider"]),
    "a list for metrics": text('{"task": "captions", "n": 1, "metrics": "many"}'),
    "rows of numbers": text('{"task": "captions", "n": 1, "metrics": [1, 2]}'),
    "a list": text("[]"),
    "empty": text(""),
    "cut off": lambda path: void(path.write_text(path.read_text()[:-9])),
    "a name twice": lambda path: void(path.write_text(path.read_text()[:-1] + ', "metrics": []}')),
    "half a character": row(name="cider\ud800"),
    "not UTF-8": lambda path: void(path.write_bytes(path.read_bytes().replace(b"cider", b"\xff\xfe"))),
    "a terabyte": sparse,
    "a pipe": instead(os.mkfifo),
    "a device without end": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
    "a folder": instead(Path.mkdir),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Three scored checkpoints, SLURM's commands, and a deadline."""
    run, commands = Run(tmp_path), tmp_path / "bin"
    for step, cider in ((1, 140.0), (2, 139.0), (3, 138.0)):
        prompted = {"prompt": "", "num_beams": 5, "max_new_tokens": 9, "min_new_tokens": 1}
        run.scored(step, cider=cider, more=prompted)
    commands.mkdir()
    for name, script in (("sbatch", SBATCH), ("squeue", "#!/bin/bash\n"), ("scancel", "#!/bin/bash\n")):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def late(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"has not ended after {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_S)
    yield run
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def commands(run: Run) -> dict[str, Callable[[], int]]:
    wanted = {"coco": {"task": "captioning", "data": "d"}}
    watched = {"output": str(run.scores.parent), "runs": [str(run.folder)], "evaluations": wanted}
    listed = run.scores.parent / "list.yaml"
    listed.write_text(yaml.safe_dump(watched))
    page = run.scores.parent / "report.html"
    return {
        "curves": lambda: curves.main([str(run.scores)]),
        "select": lambda: select.main([str(run.folder), "--metric", "cider"]),
        "report": lambda: report.main([str(run.scores), "--output", str(page)]),
        "watch": lambda: watch.main([str(listed), "--once"]),
    }


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_metrics_file_is_named(kind: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = run.scores / "step_00000001" / "coco" / "metrics.json"
    HOSTILE[kind](spoilt)
    for name, command in commands(run).items():
        capsys.readouterr()
        code = command()
        lines = capsys.readouterr().err.splitlines()
        if name == "watch" or kind == "a link to itself":  # an evaluation without scores
            assert (code, lines) == (0, [])
        else:
            assert code == 1 and len(lines) == 1 and str(spoilt) in lines[0]


@pytest.mark.parametrize("step", ["-5", "x", "9" * 30])
def test_a_step_that_is_no_number_is_named(step: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.scores / "step_00000001").rename(run.scores / f"step_{step}")
    for name in ("curves", "report"):
        capsys.readouterr()
        assert commands(run)[name]() == 1
        [line] = capsys.readouterr().err.splitlines()
        assert f"step {step!r} is not a whole number" in line


def test_names_cannot_steer_the_terminal(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.scores.glob("*/*/metrics.json"):
        row(protocol="captions/\x1b[2J")(path)
    for name, command in commands(run).items():
        assert command() == 0, name
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
