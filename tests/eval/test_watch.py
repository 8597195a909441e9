"""Watching over evaluations of which some are spoilt: those are named, and the others are submitted all the same.

SLURM's commands are scripts here, which answer as it does; tests/slurm has the real ones.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.watch import main
from pipeline.files import sha256_of

SBATCH = """#!/bin/bash
[[ "$*" != *partition=nowhere* ]] || { echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1; }
echo "$@" >>"$(dirname "$0")/asked"
wc -l <"$(dirname "$0")/asked"
"""


class Site:
    """Checkpoints of a run, and a watch list over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = folder / "bin"
        self.commands.mkdir()
        for name, script in (("sbatch", SBATCH), ("squeue", "#!/bin/bash\n"), ("scancel", "#!/bin/bash\n")):
            (self.commands / name).write_text(script)
            (self.commands / name).chmod(0o755)
        checkpoint = folder / "stage2" / "checkpoints" / "step_00000002"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainable.safetensors").write_bytes(b"weights")
        (checkpoint / "COMPLETE").touch()

    def watch(self, **options: list[str]) -> int:
        """Look once at evaluations of these names, with these options of sbatch."""
        return self.look({name: {"task": "vqa", "data": "d", "sbatch": each} for name, each in options.items()})

    def look(self, wanted: dict[str, dict[str, Any]]) -> int:
        content = {"output": str(self.folder / "eval"), "runs": [str(self.folder / "stage2")], "evaluations": wanted}
        (self.folder / "list.yaml").write_text(yaml.safe_dump(content))
        return main([str(self.folder / "list.yaml"), "--once"])

    def of(self, name: str) -> Path:
        folder = self.folder / "eval" / "stage2" / "step_00000002" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path)
    monkeypatch.setenv("PATH", f"{site.commands}:{os.environ['PATH']}")
    return site


def test_one_that_sbatch_refuses_is_named_and_the_others_are_submitted(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.watch(bad=["--partition=nowhere"], good=[]) == 1
    said = capsys.readouterr()
    assert f"{site.of('bad')}: sbatch: " in said.err and "invalid partition" in said.err and said.err.count("\n") == 1
    assert f"{site.of('good')}: submitted 1 2" in said.out and "1 not submitted, 1 submitted" in said.out
    assert not (site.of("bad") / "submitted.json").exists()


@pytest.mark.parametrize(
    "content", ["[]", "null", "", '{"jobs": 5}', '{"jobs": [5]}', '{"jobs": [], "outputs": 5}', "{}", "\0"]
)
def test_a_spoilt_note_is_named_and_the_others_are_submitted(
    content: str, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    note = site.of("bad") / "submitted.json"
    note.write_text(content)
    assert site.watch(bad=[], good=[]) == 1
    said = capsys.readouterr()
    assert f"{note}: " in said.err and "remove the file" in said.err and said.err.count("\n") == 1
    assert f"{site.of('good')}: submitted" in said.out and note.read_text() == content


def test_a_spoilt_task_file_is_named_and_the_others_are_submitted(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.of("bad") / "submitted.json").write_text('{"jobs": ["7"], "stamp": [1, 1]}')  # of weights since replaced
    (site.of("bad") / "task.json").write_text("[]")
    assert site.watch(bad=[], good=[]) == 1
    said = capsys.readouterr()
    assert f"{site.of('bad') / 'task.json'}: " in said.err and said.err.count("\n") == 1
    assert f"{site.of('good')}: submitted" in said.out


@pytest.mark.parametrize("content", ["", '{"metrics": [', "[]", '{"metrics": []}'])
def test_only_scores_that_can_be_read_count(content: str, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (site.of("vqa") / "metrics.json").write_text(content)
    assert site.watch(vqa=[]) == 0
    assert ("1 scored" if content == '{"metrics": []}' else "1 submitted") in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"data": "e"}, {"run": ["--prompt", "x"]}, {"score": ["s"], "run": ["--prompt", "x"]}, {"task": "okvqa"}]
)
@pytest.mark.parametrize("is_scored", [True, False])
def test_an_evaluation_with_other_settings_than_the_list_has_now_is_outdated(
    change: dict[str, Any], is_scored: bool, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"task": "vqa", "data": "d"}
    site.look({"v": asked})
    if is_scored:
        (site.of("v") / "metrics.json").write_text("{}")
    how = {"sbatch": ["--time=1"], "score_sbatch": ["--time=1"], "run": ["--batch-size", "64"], "runs": ["stage2"]}
    site.look({"v": asked | how})
    state = "1 scored" if is_scored else "1 failed"
    assert state in capsys.readouterr().out  # how it is submitted does not matter
    assert site.look({"v": asked | change}) == 0
    said = capsys.readouterr()
    assert "1 other settings" in said.out and said.err.count("\n") == 1
    assert f"{site.of('v')}: outdated: it was evaluated with other settings than the list has now; " in said.err
    assert "remove the folder" in said.err
    site.look({"v": asked})
    assert state in capsys.readouterr().out  # and the list as it was is what was asked


def test_other_settings_of_scores_alone_keep_the_predictions(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"task": "vqa", "data": "d", "run": ["--batch-size=8", "--num-beams", "1"]}
    site.look({"v": asked})
    for name in ("metrics.json", "COMPLETE"):
        (site.of("v") / name).write_text("{}")
    weights = site.folder / "stage2/checkpoints/step_00000002/trainable.safetensors"
    (site.of("v") / "task.json").write_text(json.dumps({"weights_sha256": sha256_of(weights)}))
    capsys.readouterr()
    site.look({"v": asked | {"score": ["--questions", "q"]}})
    said = capsys.readouterr()
    assert "1 scored with other settings" in said.out
    assert "remove submitted.json (and metrics.json, if there)" in said.err
    for name in ("metrics.json", "submitted.json"):
        (site.of("v") / name).unlink()
    asked_of_sbatch = site.commands / "asked"
    asked_of_sbatch.unlink()
    site.look({"v": asked | {"score": ["--questions", "q"]}})
    assert "1 submitted" in capsys.readouterr().out
    [only] = asked_of_sbatch.read_text().splitlines()
    assert "score.sbatch" in only and "--questions q" in only


def test_scoring_that_failed_costs_no_predictions(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"task": "vqa", "data": "d", "score": ["--annotations", "nowhere"]}
    site.look({"v": asked})
    weights = site.folder / "stage2/checkpoints/step_00000002/trainable.safetensors"
    (site.of("v") / "task.json").write_text(json.dumps({"weights_sha256": sha256_of(weights)}))
    (site.of("v") / "COMPLETE").touch()
    capsys.readouterr()
    changed = asked | {"score": ["--annotations", "a"]}
    for now, state in ((asked, "1 not scored"), (changed, "1 scored with other settings")):
        site.look({"v": now})
        said = capsys.readouterr()
        assert state in said.out and "remove submitted.json" in said.err and "remove the folder" not in said.err
    (site.of("v") / "submitted.json").unlink()
    (site.commands / "asked").unlink()
    site.look({"v": asked})
    assert "score.sbatch" in (site.commands / "asked").read_text() and "1 submitted" in capsys.readouterr().out
    (site.of("v") / "submitted.json").unlink()
    weights.write_bytes(b"other weights")
    site.look({"v": asked})
    assert "1 outdated" in capsys.readouterr().out  # those predictions are of the weights that were there


def test_a_note_of_an_earlier_version_without_settings_counts_as_unchanged(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.watch(v=[])
    note = json.loads((site.of("v") / "submitted.json").read_text())
    del note["asked"]
    (site.of("v") / "submitted.json").write_text(json.dumps(note))
    (site.of("v") / "metrics.json").write_text("{}")
    assert site.look({"v": {"task": "vqa", "data": "other"}}) == 0
    assert "1 scored" in capsys.readouterr().out


def test_what_lost_its_checkpoint_before_it_was_scored_is_named(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.watch(lost=[], predicted=[], scored=[], other=[], queued=[])
    queued = json.loads((site.of("queued") / "submitted.json").read_text())["jobs"][1]
    (site.commands / "squeue").write_text(f"#!/bin/bash\necho {queued}\n")
    (site.of("predicted") / "COMPLETE").touch()
    (site.of("scored") / "metrics.json").write_text("{}")
    (site.folder / "stage2" / "checkpoints" / "step_00000002" / "COMPLETE").unlink()
    capsys.readouterr()
    assert site.watch(lost=[], predicted=[], scored=[], queued=[]) == 0  # and `other` is no longer wanted
    said = capsys.readouterr()
    assert said.out.endswith("1 lost, 1 predicted, 1 scored, 1 waiting\n")
    lost, predicted = said.err.splitlines()
    assert str(site.of("lost")) in lost and "run.keep_every_steps" in lost
    assert str(site.of("predicted")) in predicted and "score.sbatch" in predicted


def test_a_slurm_that_is_silent_ends_the_look(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.watching import slurm_commands

    monkeypatch.setattr(slurm_commands, "ANSWER_S", 2.0)
    (site.commands / "sbatch").write_text("#!/bin/bash\nexec sleep 60\n")
    assert site.watch(first=[], second=[]) == 1
    error = capsys.readouterr().err
    assert "sbatch: no answer in 2.0 s" in error and error.count("\n") == 1
    notes: list[Any] = [json.loads(path.read_text()) for path in (site.folder / "eval").rglob("submitted.json")]
    assert [note["jobs"] for note in notes] == [[]]  # of the first alone


def test_a_job_that_cannot_be_cancelled_keeps_its_note_and_is_looked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.watching import slurm_commands

    monkeypatch.setattr(slurm_commands, "ANSWER_S", 2.0)
    refuses_scores = SBATCH.replace("*partition=nowhere*", "*score.sbatch*")
    (site.commands / "sbatch").write_text(refuses_scores)
    (site.commands / "scancel").write_text("#!/bin/bash\nexec sleep 60\n")
    assert site.watch(vqa=[]) == 1
    error = capsys.readouterr().err
    assert "scancel: no answer in 2.0 s (1)" in error and error.count("\n") == 1
    assert json.loads((site.of("vqa") / "submitted.json").read_text())["jobs"] == []
