"""`eval.watch --run-here`: the real commands as children, each evaluation once, also after a stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.watch import main, only_one
from eval.watching.here import prediction_command
from eval.watching.wanted import Evaluation, Wanted

ROOT = Path(__file__).parents[2]
NO_LOCKS = """
import errno, fcntl
def none(*arguments):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = fcntl.lockf = none
"""
ANNOTATIONS = ("v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json")


def write_list(folder: Path, run: Path, **evaluations: dict[str, Any]) -> list[str]:
    """A watch list; returns the arguments that look once."""
    content = {"output": str(folder / "eval"), "runs": [str(run)], "evaluations": evaluations}
    (folder / "list.yaml").write_text(yaml.safe_dump(content))
    return [str(folder / "list.yaml"), "--run-here", "--once"]


@pytest.fixture
def vqa(sets: dict[str, Path]) -> dict[str, Any]:
    annotations, questions = (str(sets["vqav2"] / name) for name in ANNOTATIONS)
    score = ["--annotations", annotations, "--questions", questions]
    return {"task": "vqa", "data": str(sets["vqav2"]), "run": ["--batch-size", "2"], "score": score}


def note_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "submitted.json").read_text())
    return found


def is_free(folder: Path) -> bool:
    """Whether the lock is free within 20 s: a process that was killed with its group may need a moment to be gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with only_one(folder) as lock:
            if lock is not None:
                return True
        time.sleep(0.05)
    return False


def test_a_stop_ends_the_child_and_the_next_look_goes_on(
    checkpoints: dict[str, Path], vqa: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = write_list(tmp_path, checkpoints["opt"], vqa=vqa)
    folder = tmp_path / "eval" / "opt" / "step_00000004" / "vqa"
    watcher = subprocess.Popen([sys.executable, "-m", "eval.watch", *arguments], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not list(folder.glob("*-here.out")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert main(arguments) == 0  # a second watcher meanwhile
    assert "another eval.watch is at work" in capfd.readouterr().out
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(300) == 75
    assert is_free(tmp_path / "eval"), "a child holds the watchers' lock"
    assert note_of(folder)["jobs"] == [] and not (folder / "COMPLETE").exists()

    assert main(arguments) == 0
    assert f"{folder}: scored" in capfd.readouterr().out
    assert note_of(folder)["jobs"] == ["here"]
    names = {row["name"] for row in json.loads((folder / "metrics.json").read_text())["metrics"]}
    assert names and (folder / "per_sample.jsonl").is_file() and (folder / "predictions.json").is_file()
    run = folder.parents[1]
    assert "<html" in (run / "report.html").read_text() and list((run / "tensorboard").glob("*tfevents*"))
    before = (folder / "metrics.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert capfd.readouterr().out.endswith("1 scored\n") and (folder / "metrics.json").stat().st_mtime_ns == before


def test_it_finishes_on_a_file_system_without_locks(
    checkpoints: dict[str, Path], vqa: dict[str, Any], tmp_path: Path
) -> None:
    """The watcher and each of its children; each names the file that it cannot lock."""
    arguments = write_list(tmp_path, checkpoints["opt"], vqa=vqa)
    (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "eval.watch", *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0 and done.stdout.endswith("1 scored\n"), done
    output = next((tmp_path / "eval").rglob("*-here.out")).read_text()
    for lock, told in (
        (".watch.lock", done.stderr),
        ("predictions.rank0.jsonl", output),
    ):
        assert f"{lock}: this file system has no locks" in told


def test_one_that_fails_is_named_and_not_begun_again_by_itself(
    checkpoints: dict[str, Path], vqa: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = vqa | {"data": str(tmp_path / "nowhere")}
    arguments = write_list(tmp_path, checkpoints["opt"], vqa=spoilt)
    folder = tmp_path / "eval" / "opt" / "step_00000004" / "vqa"
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert f"{folder}: its jobs ended without predictions" in said.err and "1 failed now" in said.out
    [output] = folder.glob("*-here.out")
    assert "nowhere" in output.read_text()
    assert main(arguments) == 0
    assert "1 failed\n" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1, 75, -9])
def test_what_the_exit_codes_of_the_children_lead_to(
    code: int, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a child is a shell that ends with this code when it is to score."""
    from eval.watching import here

    [checkpoint] = (checkpoints["opt"] / "checkpoints").iterdir()
    folder = tmp_path / "eval" / "opt" / checkpoint.name / "vqa"
    evaluation = Evaluation("vqa", Wanted(task="vqa", data="d"), checkpoint, folder)
    run, asked = here._run, []

    def shell(command: list[str], output: Path, lock: int) -> int:
        asked.append(command[2])
        end = "kill -9 $$" if code < 0 else f"exit {code}"
        return run(["bash", "-c", end if command[2] == "eval.score" else "true"], output, lock)

    monkeypatch.setattr(here, "_run", shell)
    with only_one(tmp_path / "eval") as lock:
        assert lock is not None
        state = here.evaluate(evaluation, 1, lock)
    assert state == {0: "scored", 75: "stopped"}.get(code, "not scored")
    assert note_of(folder)["jobs"] == ([] if code == 75 else ["here"])
    told = [path.read_text() for path in folder.glob("*-here.out")]
    assert any("killed by signal 9, most likely because memory ran out" in text for text in told) == (code < 0)
    shown = ["eval.curves", "eval.report"] if code == 0 else []
    assert asked == ["eval.run", "eval.score", *shown]


def test_several_gpus_are_the_launchers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = Evaluation("vqa", Wanted(task="vqa", data="d", run=["--seed", "1"]), tmp_path / "c", tmp_path / "e")
    command = prediction_command(evaluation, 4)
    assert Path(command[0]).name == "deepspeed" and os.access(command[0], os.X_OK)
    assert command[1:4] == ["--num_gpus", "4", "--master_port"] and command[5:7] == ["--module", "eval.run"]
    assert command[-2:] == ["--seed", "1"] and command[7:] == prediction_command(evaluation, 1)[3:]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "list.yaml"), "--gpus", "4"])
    assert "--gpus 4: is for --run-here" in capsys.readouterr().err
