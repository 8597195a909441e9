"""METEOR against pycocoevalcap's own, SPICE's outside step, and everything that Java may do instead of answering."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from eval.metrics import java_program
from eval.metrics.java_program import private_folder
from eval.metrics.meteor import meteor, meteor_statistics, packaged_jar
from eval.metrics.ptb_tokens import tokenize
from eval.metrics.spice import MODELS, check_spice, spice_scores
from eval.score import main as score
from tests.eval.metrics.test_captions import random_caption

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed: METEOR's jar cannot run")


@needs_java
def test_meteor_equals_pycocoevalcaps_by_image_and_overall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of empty, equal and odd captions; in a decimal-comma locale, beside a jar whose folder cannot be written."""
    from pycocoevalcap.meteor.meteor import Meteor

    rng = random.Random(5)
    predictions = tokenize(["", "a dog", "a dog runs", "a cat ||| sits", *(random_caption(rng) for _ in range(100))])
    references = [tokenize([random_caption(rng) for _ in range(rng.randint(1, 6))]) for _ in predictions]
    references[1], references[2] = ["a dog"], ["", "the dog is running"]
    predictions[3] = "a cat ||| sits"
    theirs = Meteor()
    overall, per_image = theirs.compute_score(dict(enumerate(references)), {i: [p] for i, p in enumerate(predictions)})
    jar = tmp_path / "package" / "meteor-1.5.jar"
    shutil.copytree(packaged_jar().parent, jar.parent)
    jar.parent.chmod(0o555)
    before = sorted(path.name for path in jar.parent.iterdir())
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    statistics = meteor_statistics(predictions, references, jar)
    assert np.abs(meteor(statistics) - per_image).max() < 1e-6
    assert abs(float(meteor(statistics.sum(axis=0))) - overall) < 1e-6
    assert per_image[1] == 1.0 and sorted(path.name for path in jar.parent.iterdir()) == before


def fake_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts another `java` first on the path."""
    java = folder / "java"
    java.write_text(f"#!/bin/bash\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -9 $$", "METEOR: java was killed by SIGKILL, probably because memory ran out"),
        ("echo no memory >&2; exit 3", "METEOR: java exited with code 3 (no memory); run it again"),
        ("echo 1 2 3; echo 4", "METEOR: java answered '1 2 3' for image row 0"),
        ("exit 0", "METEOR: java answered 0 lines for 2 captions"),
        (f"echo {'1 ' * 23}; echo {'1 ' * 22}nan", "METEOR: java answered '1 1 1"),
        (f"echo {'1 ' * 22}one; echo {'1 ' * 23}", "one' for image row 0"),
        ("printf '\\xff\\n\\xff\\n'", "METEOR: java answered '\ufffd' for image row 0"),
    ],
)
def test_java_that_fails_is_one_clear_line(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(tmp_path, script, monkeypatch)
    with pytest.raises(ValueError) as refused:
        meteor_statistics(["a", "b"], [["a"], ["b"]], Path("meteor.jar"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_java_that_hangs_is_killed_with_all_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_java(tmp_path, f"sleep 1000 & echo $! >{tmp_path}/child; wait", monkeypatch)
    with pytest.raises(ValueError, match=r"METEOR: java has not ended after 0.5 s and was killed"):
        meteor_statistics(["a"], [["a"]], Path("meteor.jar"), deadline_s=0.5)
    child = (tmp_path / "child").read_text().strip()
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", child], check=False, capture_output=True, text=True).stdout
        if not state.strip() or state.startswith("Z"):
            return
        time.sleep(0.05)
    raise AssertionError(f"the child still runs: {state}")


START = """
import sys
from pathlib import Path
from eval.metrics.meteor import meteor_statistics
meteor_statistics(["a"], [["a"]], Path("meteor.jar"))
"""


def test_a_killed_scorer_takes_its_java_with_it_and_its_folder_goes_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(
        tmp_path, f"echo $$ >{tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 1000", monkeypatch
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with subprocess.Popen([sys.executable, "-c", START]) as scorer:
        for _ in range(600):
            if (tmp_path / "pid").exists():
                break
            time.sleep(0.05)
        java = int((tmp_path / "pid").read_text())
        with private_folder("meteor") as own:  # while both live, neither folder is touched
            assert len(list(temporary.iterdir())) == 2 and own.is_dir()
        scorer.kill()
    for _ in range(100):
        if not Path(f"/proc/{java}").exists() or " Z " in Path(f"/proc/{java}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"java {java} still runs")
    assert len(list(temporary.iterdir())) == 1
    with private_folder("meteor") as own:
        assert list(temporary.iterdir()) == [own]
    assert not list(temporary.iterdir())


def test_a_missing_jar_is_noticed_before_meteor_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_java(tmp_path, f"touch {tmp_path}/begun", monkeypatch)
    (tmp_path / "a.json").write_text('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]}')
    (tmp_path / "p.json").write_text('[{"image_id": 1, "caption": "a"}]')
    files = ["--predictions", str(tmp_path / "p.json"), "--annotations", str(tmp_path / "a.json")]
    outside = ["--meteor", "--spice", str(tmp_path / "gone.jar")]
    assert score(["captions", *files, *outside, "--output", str(tmp_path / "m.json")]) == 1
    assert "gone.jar: no such file" in capsys.readouterr().err and not (tmp_path / "begun").exists()


def test_without_java_the_command_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(java_program.shutil, "which", lambda name: None)
    (tmp_path / "a.json").write_text(
        json.dumps({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]})
    )
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "caption": "a"}]))
    files = ["--predictions", str(tmp_path / "p.json"), "--annotations", str(tmp_path / "a.json")]
    assert score(["captions", *files, "--meteor", "--output", str(tmp_path / "m.json")]) == 1
    error = capsys.readouterr().err
    assert "METEOR: java is not installed" in error and error.count("\n") == 1 and not (tmp_path / "m.json").exists()
    assert score(["captions", *files, "--output", str(tmp_path / "m.json")]) == 0
    content = json.loads((tmp_path / "m.json").read_text())
    assert set(content["not_computed"]) == {"meteor", "spice"}
    assert not {"meteor", "spice"} & {row["name"] for row in content["metrics"]}


@needs_java
def test_line_breaks_in_captions_shift_no_other_score(tmp_path: Path) -> None:
    images = ["a dog runs", "two cats sit", "a red bus", "a man on a horse"] * 3
    content = {
        "images": [{"id": place} for place in range(12)],
        "annotations": [{"image_id": place, "caption": text} for place, text in enumerate(images)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    breaks = ["a dog\rruns", "two\u2028cats\nsit", "a red\x0bbus\x85", "a man on a\u2029horse"] * 3
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": i, "caption": text} for i, text in enumerate(breaks)]))
    flags = [
        "--predictions",
        tmp_path / "p.json",
        "--annotations",
        tmp_path / "a.json",
        "--output",
        tmp_path / "m.json",
    ]
    assert score(["captions", *map(str, flags), "--meteor", "--per-sample", str(tmp_path / "s.jsonl")]) == 0
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [sample["meteor"] for sample in samples] == [100.0] * 12
    [row] = [row for row in json.loads((tmp_path / "m.json").read_text())["metrics"] if row["name"] == "meteor"]
    assert row["value"] == row["low"] == row["high"] == 100.0


SPICE = """
import json, sys
if "-version" in sys.argv:
    sys.exit(print('openjdk version "VERSION" 2025-04-15', file=sys.stderr))
source, target = sys.argv[sys.argv.index("-jar") + 2], sys.argv[sys.argv.index("-out") + 1]
entries = json.load(open(source))
scores = [{"image_id": e["image_id"], "scores": {"All": {"f": 0.5 if e["test"] in e["refs"] else None}}}
          for e in entries]
json.dump(scores, open(target, "w"))
"""


@pytest.fixture
def spice_jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of the jar's names, and a `java` that runs spice.py: SPICE and its 384 MB of models are not here."""
    (tmp_path / "spice.py").write_text(SPICE.replace("VERSION", "1.8.0_302"))
    (tmp_path / "lib").mkdir()
    for name in MODELS:
        (tmp_path / "lib" / name).touch()
    fake_java(tmp_path, f'exec python3 {tmp_path}/spice.py "$@"', monkeypatch)
    (tmp_path / "spice-1.0.jar").touch()
    return tmp_path / "spice-1.0.jar"


def test_spice_is_an_outside_step_by_a_given_jar(spice_jar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the exchange of files."""
    found = spice_scores(["a", "b"], [["a", "c"], ["c"]], spice_jar)
    assert found[0] == 0.5 and np.isnan(found[1])
    program = spice_jar.with_name("spice.py")
    program.write_text(program.read_text().replace("0.5", "'high'"))
    with pytest.raises(ValueError, match=r"SPICE: .*did not score every image"):
        spice_scores(["a"], [["a"]], spice_jar)
    fake_java(spice_jar.parent, "exit 0", monkeypatch)
    with pytest.raises(ValueError, match="did not score every image"):
        spice_scores(["a"], [["a"]], spice_jar)


@pytest.mark.parametrize(
    ("version", "fits"), [("1.8.0_302", True), ("14.0.2", True), ("15", False), ("17.0.15", False)]
)
def test_spice_says_which_java_it_needs(version: str, fits: bool, spice_jar: Path) -> None:
    spice_jar.with_name("spice.py").write_text(SPICE.replace("VERSION", version))
    if fits:
        check_spice(spice_jar)
        return
    with pytest.raises(ValueError, match=f"cannot write its scores under Java {version[:2]}, .*put Java 8"):
        check_spice(spice_jar)


def test_what_spice_lacks_is_named(spice_jar: Path) -> None:
    (spice_jar.parent / "lib" / MODELS[1]).unlink()
    with pytest.raises(ValueError, match=r"no lib/stanford-corenlp-3\.6\.0-models\.jar beside it"):
        check_spice(spice_jar)
    with pytest.raises(ValueError, match=r"--spice gone.jar: no such file"):
        spice_scores(["a"], [["a"]], Path("gone.jar"))


def test_what_others_put_into_the_temporary_folder_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe would be waited for, and a link would let a foreign folder be removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    for folder in (tmp_path / "meteor-pipe", elsewhere, tmp_path / "meteor-link"):
        folder.mkdir()
    os.mkfifo(tmp_path / "meteor-pipe" / ".in_use")
    (elsewhere / ".in_use").touch()
    (tmp_path / "meteor-folder").symlink_to(elsewhere)
    (tmp_path / "meteor-link" / ".in_use").symlink_to(elsewhere / ".in_use")
    before = sorted(tmp_path.rglob("*"))
    signal.alarm(60)  # a pipe that is opened waits for ever
    try:
        for name in ("meteor", "spice"):
            with private_folder(name) as own:
                assert own.stat().st_mode & 0o777 == 0o700
    finally:
        signal.alarm(0)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_was_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "meteor-left").mkdir()
    (tmp_path / "meteor-left" / ".in_use").touch()
    with private_folder("meteor"):
        assert not (tmp_path / "meteor-left").exists()
