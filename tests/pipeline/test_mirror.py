"""A run's numbers in W&B or MLflow: each line once, whatever is killed and resumed, until the run is complete."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from eval.watch import main as watch
from pipeline import mirror
from pipeline.files import LONGEST_LINE
from pipeline.mirror import main

ROOT = Path(__file__).parents[2]


class Told:
    """A service that writes down what it is sent; all of them share the list."""

    lines: list[tuple[int, dict[str, float]]]
    runs: list[str | None]

    def __init__(self, run: Path, run_id: str | None) -> None:
        self.run_id = run_id or "theirs"
        self.runs.append(run_id)

    def send(self, step: int, numbers: dict[str, float]) -> None:
        self.lines.append((step, numbers))

    def close(self) -> None:
        self.runs.append("closed")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    kind = type("OfThisTest", (Told,), {"lines": [], "runs": []})
    monkeypatch.setitem(mirror.SERVICES, "wandb", kind)
    return kind


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("stage: 2\n")
    (tmp_path / "environment.json").write_text('{"steps": 6}')
    return tmp_path


def line(step: int, **values: Any) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def write(run: Path, *lines: str) -> None:
    (run / "metrics.jsonl").write_text("".join(lines))


def put(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


def once(run: Path) -> int:
    return main([str(run), "--to", "wandb", "--once"])


def test_each_line_is_sent_once_whatever_is_started_again(run: Path, told: type[Told]) -> None:
    first, validated = line(2, samples=8, itc_loss=0.5), line(2, split="validation", itc_loss=0.75)
    write(run, first, validated, line(4, loss=1.0)[:-5])
    assert once(run) == 0
    assert told.lines == [(2, {"data/samples": 8.0, "loss/itc": 0.5}), (2, {"validation/itc_loss": 0.75})]
    write(run, first, validated, line(4, loss=1.0), line(4, split="validation", loss=2.0))
    assert once(run) == 0 and once(run) == 0
    assert told.lines[2:] == [(4, {"loss/total": 1.0}), (4, {"validation/loss": 2.0})]
    assert told.runs == [None, "closed", "theirs", "closed", "theirs", "closed"]


def test_steps_that_a_resumed_training_writes_again_are_not_sent_again(run: Path, told: type[Told]) -> None:
    write(run, *(line(step, loss=step / 2) for step in (1, 2, 3)))
    assert once(run) == 0
    write(run, line(1, loss=0.5), line(2, loss=1.0))  # resumed from step 1
    assert once(run) == 0
    write(run, *(line(step, loss=step / 2) for step in (1, 2, 3, 4)))
    assert once(run) == 0
    assert [step for step, _ in told.lines] == [1, 2, 3, 4]


def test_it_follows_until_the_last_step_is_saved(run: Path, told: type[Told]) -> None:
    write(run, line(2, loss=1.0))
    follower = threading.Thread(target=mirror.mirror, args=[run, "wandb", False, 0.02])
    follower.start()
    while len(told.lines) < 1:
        follower.join(0.02)
    write(run, line(2, loss=1.0), line(6, loss=0.5))
    for step in (4, 6):
        assert follower.is_alive()
        (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        (run / "checkpoints" / f"step_{step:08d}" / "COMPLETE").touch()
    follower.join(30)
    assert not follower.is_alive() and [step for step, _ in told.lines] == [2, 6] and told.runs[-1] == "closed"


def test_a_line_after_which_it_was_killed_is_noted(
    run: Path, told: type[Told], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class DownError(Exception):
        """Of a service."""

    def fail_at_3(self: Told, step: int, numbers: dict[str, float]) -> None:
        if step == 3:
            raise DownError("no\nserver")
        self.lines.append((step, numbers))

    write(run, *(line(step, loss=0.5) for step in (1, 2, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(told, "send", fail_at_3)
        assert once(run) == 1
    assert "error: --to wandb: no server" in capsys.readouterr().err
    assert once(run) == 0
    assert [step for step, _ in told.lines] == [1, 2, 3]


def test_wrong_use_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    assert main([str(run), "--to", "mlflow", "--once"]) == 1
    assert "--to mlflow: its package cannot be imported" in capsys.readouterr().err
    assert main([str(run / "none"), "--to", "mlflow"]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    with (run / ".mirror_mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main([str(run), "--to", "mlflow"]) == 1
    assert "another pipeline.mirror sends it" in capsys.readouterr().err
    (run / "mirror_mlflow.json").write_text('{"run_id": 3}')
    assert main([str(run), "--to", "mlflow"]) == 1
    assert "mirror_mlflow.json: is not a note of pipeline.mirror (run_id" in capsys.readouterr().err


def test_a_line_that_is_no_measurement_stops_no_later_one(run: Path, told: type[Told]) -> None:
    good = [line(step, loss=0.5) for step in (1, 2, 3)]
    odd = ['{"step": 2, "loss": 1' + "0" * 400 + ', "lr": 1.0, "a": NaN, "b": 1e999, "c": -1e999}\n']
    odd += [line(99999999999999999999, loss=1.0), line(-1, loss=1.0), "[" * 100_000 + "\n", "9" * 5000 + "\n"]
    odd += ['{"step": 2, "x": "' + "y" * 2 * LONGEST_LINE + '"}\n']
    write(run, good[0], *odd, good[1], good[2])
    assert once(run) == 0 and once(run) == 0
    assert told.lines == [(1, {"loss/total": 0.5}), (2, {"optimizer/lr": 1.0}), (3, {"loss/total": 0.5})]


@pytest.mark.parametrize("name", ["metrics.jsonl", ".mirror_wandb.lock", "mirror_wandb.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_one_line(
    name: str, kind: str, run: Path, told: type[Told], capsys: pytest.CaptureFixture[str]
) -> None:
    put(run / name, kind)
    assert once(run) == 1 and not told.lines
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and name in errors[0] and "is not a regular file" in errors[0]


@pytest.mark.parametrize("kind", ["pipe", "device", "deep", "huge", "list"])
def test_an_environment_that_says_nothing_ends_nothing(kind: str, run: Path) -> None:
    path = run / "environment.json"
    assert not mirror.is_complete(run)
    path.unlink()
    texts = {"deep": "[" * 100_000, "huge": '{"steps": 1' + "0" * 4000 + "}", "list": '{"steps": [6]}'}
    if kind in texts:
        path.write_text(texts[kind])
    else:
        put(path, kind)
    assert not mirror.is_complete(run)


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "1e300", "x"])
def test_a_time_that_cannot_be_waited_is_refused(value: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments in ((main, [str(run), "--to", "wandb"]), (watch, ["list.yaml"])):
        with pytest.raises(SystemExit) as end:
            command([*arguments, f"--every-s={value}"])
        assert end.value.code == 2
        assert f"argument --every-s: '{value}' is not a number of seconds" in capsys.readouterr().err


def test_wandb_itself_takes_the_lines_offline_under_one_id(run: Path) -> None:
    pytest.importorskip("wandb")
    command = [sys.executable, "-m", "pipeline.mirror", str(run), "--to", "wandb", "--once"]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    for step, name in ((2, "itc_loss"), (4, "itg_loss")):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line(step, **{name: 0.5}))
        subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=300)
    run_id = json.loads((run / "mirror_wandb.json").read_text())["run_id"]
    written = sorted((run / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(written) == 2  # a start each, of one run
    for wanted, path in zip((b"loss/itc", b"loss/itg"), written, strict=True):
        assert wanted in path.read_bytes()


def test_a_disabled_wandb_is_refused_and_nothing_is_noted(run: Path) -> None:
    environment = os.environ | {"WANDB_MODE": "disabled", "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "pipeline.mirror", str(run), "--to", "wandb", "--once"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "--to wandb: it is disabled" in done.stderr
    assert not (run / "mirror_wandb.json").exists()
