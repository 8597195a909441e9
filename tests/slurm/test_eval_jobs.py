"""`slurm/eval_watch` and its jobs on a real SLURM: each checkpoint evaluated once, scored, drawn."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.slurm_cluster import Cluster
from tests.support.tiny_evaluation_sets import save_karpathy, save_vqa
from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[2]
SMALL = ["--ntasks-per-node=1", "--cpus-per-task=1"]


def save_checkpoint(run: Path, step: int, complete: bool = True) -> Path:
    """A checkpoint of random weights of an OPT bridge."""
    import torch

    from pipeline.config import parse_recipe
    from pipeline.models.build import build_bridge
    from pipeline.weights.native import save_weights

    recipe = parse_recipe(tiny_recipe(run.parent / "towers", run.parent / "m.json", run, 2, "opt"))
    torch.manual_seed(step)
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    save_weights(build_bridge(recipe), recipe, step, folder)
    if complete:
        (folder / "COMPLETE").touch()
    return folder


class Site:
    """A home, a run folder, data, and a watch list over them."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.output = cluster, folder, folder / "eval"
        self.run = folder / "stage2"
        home = folder / "home"
        home.mkdir()
        for name in ("pipeline", "eval", "slurm"):
            (home / name).symlink_to(ROOT / name)
        (home / ".venv").symlink_to(sys.prefix)
        self.variables = {"BLIP2_HOME": str(home), "MASTER_PORT": "29500"}
        vqa, coco = save_vqa(folder / "vqav2", 2), save_karpathy(folder / "coco", 3)
        annotations, questions = "v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json"
        self.vqa: dict[str, Any] = {
            "task": "vqa",
            "data": str(vqa),
            "run": ["--batch-size", "2"],
            "score": ["--annotations", str(vqa / annotations), "--questions", str(vqa / questions)],
            "sbatch": SMALL,
        }
        self.captions: dict[str, Any] = {
            "task": "captioning",
            "data": str(coco),
            "run": ["--max-new-tokens", "4", "--min-new-tokens", "1"],
            "score": ["--annotations", str(coco / "dataset_coco.json"), "--split", "test"],
            "sbatch": SMALL,
        }

    def watch(self, *more_runs: Path, **evaluations: Any) -> subprocess.CompletedProcess[str]:
        path = self.folder / "list.yaml"
        runs = [str(run) for run in (self.run, *more_runs)]
        content = {"output": str(self.output), "runs": runs, "evaluations": evaluations}
        path.write_text(yaml.safe_dump(content))
        return self.cluster.run([f"{ROOT}/slurm/eval_watch", str(path), "--once"], self.variables, cwd=self.folder)

    def before_sbatch(self, *commands: str) -> None:
        """From now on these shell commands run before each sbatch."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        lines = ["#!/bin/bash", *commands, 'exec /usr/bin/sbatch "$@"']
        (folder / "sbatch").write_text("\n".join(lines) + "\n")
        (folder / "sbatch").chmod(0o755)
        self.variables["PATH"] = f"{folder}:{os.environ['PATH']}"

    def note(self, step: int, name: str) -> Path:
        return self.output / "stage2" / f"step_{step:08d}" / name / "submitted.json"

    def jobs(self, step: int, name: str) -> list[str]:
        jobs: list[str] = json.loads(self.note(step, name).read_text())["jobs"]
        return jobs

    def wait(self, step: int, *names: str) -> None:
        for name in names:
            for job in self.jobs(step, name):
                facts = self.cluster.wait_until_ended(job)
                outputs = [path.read_text() for path in self.note(step, name).parent.glob("*.out")]
                assert facts["JobState"] == "COMPLETED", (facts, outputs)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    return Site(cluster, tmp_path)


def submissions(outputs: list[str]) -> list[str]:
    return [line for output in outputs for line in output.splitlines() if ": submitted " in line]


def test_each_whole_checkpoint_is_evaluated_once_and_drawn_over_steps(site: Site) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save_checkpoint(site.run, 2)
    late = save_checkpoint(site.run, 4, complete=False)
    wanted = {"vqa": site.vqa, "coco": site.captions}
    with ThreadPoolExecutor(3) as pool:  # cron jobs that overlap
        done = list(pool.map(lambda _: site.watch(**wanted), range(3)))
    assert [each.returncode for each in done] == [0, 0, 0], done
    assert len(submissions([each.stdout for each in done])) == 2
    assert not site.note(4, "vqa").exists()
    site.wait(2, "vqa", "coco")

    (late / "COMPLETE").touch()
    again = site.watch(**wanted)
    assert len(submissions([again.stdout])) == 2 and "2 scored, 2 submitted" in again.stdout, again
    site.wait(4, "vqa", "coco")
    assert "4 scored" in site.watch(**wanted).stdout

    folder = site.output / "stage2"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    points = {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for step in (2, 4):
        rows = json.loads((folder / f"step_{step:08d}" / "coco" / "metrics.json").read_text())["metrics"]
        cider = next(row["value"] for row in rows if row["name"] == "cider")
        assert (step, pytest.approx(cider, rel=1e-6)) in points["coco/cider captions pycocoevalcap-1.2"]
    assert [step for step, _ in points["vqa/accuracy vqa legacy-2017"]] == [2, 4]
    report = (folder / "report.html").read_text()
    assert "Scores over checkpoints" in report and "<polyline" in report and "data:image/jpeg" in report


def test_scores_of_replaced_weights_are_outdated_and_those_of_copied_ones_are_not(tmp_path: Path) -> None:
    from eval.task_folder import sha256_of
    from eval.watching.jobs import stamp_of, state_of
    from eval.watching.wanted import WatchList, evaluations

    run = tmp_path / "stage2"
    weights = save_checkpoint(run, 2) / "trainable.safetensors"
    wanted = {"output": tmp_path / "eval", "runs": [run], "evaluations": {"vqa": {"task": "vqa", "data": "d"}}}
    [evaluation] = evaluations(WatchList.model_validate(wanted))
    assert state_of(evaluation, set()) == "missing"
    evaluation.folder.mkdir(parents=True)
    note = {"jobs": ["7"], "stamp": stamp_of(evaluation)}
    (evaluation.folder / "submitted.json").write_text(json.dumps(note))
    assert state_of(evaluation, {"7"}) == "waiting" and state_of(evaluation, {"8"}) == "failed"
    (evaluation.folder / "task.json").write_text(json.dumps({"weights_sha256": sha256_of(weights)}))
    (evaluation.folder / "metrics.json").write_text("{}")
    assert state_of(evaluation, set()) == "scored"
    os.utime(weights, (1, 1))
    assert state_of(evaluation, set()) == "scored"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert state_of(evaluation, set()) == "outdated"


def test_a_failed_evaluation_is_named_and_not_submitted_again(site: Site) -> None:
    save_checkpoint(site.run, 2)
    broken = site.vqa | {"data": str(site.folder / "nowhere")}
    assert "1 submitted" in site.watch(vqa=broken).stdout
    predicting, scoring = site.jobs(2, "vqa")
    assert site.cluster.wait_until_ended(predicting)["JobState"] == "FAILED"
    assert site.cluster.wait_until_ended(scoring)["JobState"] == "CANCELLED"
    for _ in range(2):
        done = site.watch(vqa=broken)
        assert done.returncode == 0 and "1 failed" in done.stdout and not submissions([done.stdout])
        [line] = done.stderr.splitlines()
        assert str(site.note(2, "vqa").parent) in line and "remove the folder" in line
    note = json.loads(site.note(2, "vqa").read_text())
    site.note(2, "vqa").write_text(json.dumps(note | {"jobs": []}))  # killed before it could note them; they have ended
    assert "1 failed" in site.watch(vqa=site.vqa).stdout and site.jobs(2, "vqa") == [predicting]
    site.note(2, "vqa").unlink()
    assert "1 submitted" in site.watch(vqa=site.vqa).stdout
    site.wait(2, "vqa")
    folder = site.note(2, "vqa").parent
    for name in ("metrics.json", "submitted.json"):  # predictions that are there are only scored
        (folder / name).unlink()
    assert "1 submitted" in site.watch(vqa=site.vqa).stdout
    assert len(site.jobs(2, "vqa")) == 1
    site.wait(2, "vqa")
    assert (folder / "metrics.json").exists()


def test_a_watcher_killed_between_submitting_and_noting_leaves_no_second_job(site: Site) -> None:
    save_checkpoint(site.run, 2)
    held = site.vqa | {"sbatch": [*SMALL, "--hold"]}
    assert "1 submitted" in site.watch(vqa=held).stdout
    jobs = site.jobs(2, "vqa")
    note = json.loads(site.note(2, "vqa").read_text())
    for noted, gone in (([], None), ([], jobs[1])):  # killed after both, and between them
        if gone:
            site.cluster.answer("scancel", gone)
            site.cluster.wait_for(gone, lambda facts: facts["JobState"] == "CANCELLED")
        site.note(2, "vqa").write_text(json.dumps(note | {"jobs": noted}))
        assert "1 submitted" in site.watch(vqa=held).stdout
        assert site.jobs(2, "vqa")[0] == jobs[0] and (site.jobs(2, "vqa")[1] == jobs[1]) == (gone is None)
    queued = site.cluster.answer("squeue", "--noheader", "--format=%j").split()
    assert sorted(queued) == ["eval-stage2-step_00000002-vqa", "eval-stage2-step_00000002-vqa-score"]
    site.cluster.answer("scontrol", "release", jobs[0])
    site.wait(2, "vqa")


def test_a_watcher_killed_while_sbatch_is_in_flight_leaves_no_second_job(site: Site) -> None:
    save_checkpoint(site.run, 2)
    held = site.vqa | {"sbatch": [*SMALL, "--hold"]}
    watcher, go_on = site.folder / "watcher", site.folder / "go_on"
    site.before_sbatch(
        f"echo $PPID >{watcher}.tmp; mv {watcher}.tmp {watcher}", f"until [ -e {go_on} ]; do sleep 0.1; done"
    )
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(site.watch, vqa=held)
        while not watcher.exists():
            time.sleep(0.05)
        site.cluster.answer("kill", "-9", watcher.read_text().strip())
        assert "another one watches" in site.watch(vqa=held).stdout
        go_on.touch()
        assert killed.result().returncode != 0
    for _ in range(100):
        if submissions([(done := site.watch(vqa=held)).stdout]):
            break
        assert "another one watches" in done.stdout, done
    queued = site.cluster.answer("squeue", "--noheader", "--format=%j %i").split()
    assert sorted(queued[::2]) == ["eval-stage2-step_00000002-vqa", "eval-stage2-step_00000002-vqa-score"]
    assert sorted(queued[1::2]) == sorted(site.jobs(2, "vqa"))
    site.cluster.answer("scancel", *site.jobs(2, "vqa"))


def test_a_job_that_sbatch_did_not_acknowledge_in_time_is_not_submitted_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.watching import jobs
    from eval.watching.wanted import WatchList, evaluations

    save_checkpoint(site.run, 2)
    wanted = {"output": site.output, "runs": [site.run], "evaluations": {"vqa": {"task": "vqa", "data": "d"}}}
    [evaluation] = evaluations(WatchList.model_validate(wanted))
    monkeypatch.setattr(jobs, "ANSWER_S", 0.2)
    slow = site.folder / "slow"
    slow.mkdir()
    (slow / "sbatch").write_text("#!/bin/bash\nsleep 5\n")
    (slow / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match=r"sbatch: no answer in 0.2 s"):
        jobs.submit(evaluation, ROOT / "slurm", 2)
    note = json.loads(site.note(2, "vqa").read_text())
    assert note["jobs"] == [] and note["outputs"] == []  # the intent stays, and names what it is to be told by
    (site.note(2, "vqa").parent / "eval-stage2-step_00000002-vqa-77.out").touch()  # the job had been taken, and ended
    assert "1 failed" in site.watch(vqa=site.vqa).stdout and site.jobs(2, "vqa") == ["77"]


def test_a_checkpoint_pruned_meanwhile_is_skipped_and_a_missing_run_is_named(site: Site) -> None:
    site.run.mkdir()
    assert site.watch(vqa=site.vqa).stdout.endswith("no whole checkpoint yet\n")
    pruned = save_checkpoint(site.run, 2)
    held = site.vqa | {"sbatch": [*SMALL, "--hold"]}
    site.before_sbatch(f"rm -rf {pruned}")
    done = site.watch(site.folder / "stage3", first=held, second=held)
    assert done.returncode == 1 and "1 pruned meanwhile, 1 submitted" in done.stdout, done
    assert f"runs: no folder {site.folder / 'stage3'}" in done.stderr and done.stderr.count("\n") == 1
    assert not site.note(2, "second").exists()
    site.cluster.answer("scancel", *site.jobs(2, "first"))


def test_what_sbatch_refuses_is_one_line_and_leaves_no_job(site: Site) -> None:
    save_checkpoint(site.run, 2)
    done = site.watch(vqa=site.vqa | {"score_sbatch": ["--partition=nowhere"]})
    assert done.returncode == 1 and "invalid partition" in done.stderr and done.stderr.count("\n") == 1
    assert not site.note(2, "vqa").exists()
    assert not site.cluster.answer("squeue", "--noheader", "--states=PENDING,RUNNING").strip()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"runs": ["a"], "evaluations": {}}, "output: Field required"),
        ({"output": "o", "runs": ["a/x", "b/x"], "evaluations": {"v": {"task": "vqa", "data": "d"}}}, "called 'x'"),
        ({"output": "o", "runs": ["a"], "evaluations": {"v": {"task": "vaq", "data": "d"}}}, "evaluations.v.task"),
        (
            {"output": "o", "runs": ["a"], "evaluations": {"v": {"task": "vqa", "data": "d", "runs": ["b"]}}},
            "'b' is none",
        ),
        ({"output": "o", "runs": ["a"], "evaluations": {"a/b": {"task": "vqa", "data": "d"}}}, "'a/b'"),
    ],
)
def test_a_wrong_list_is_one_line_that_names_the_field(
    content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.watch import main

    (tmp_path / "list.yaml").write_text(yaml.safe_dump(content))
    assert main([str(tmp_path / "list.yaml"), "--once"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("score.sbatch", {}, "runs under SLURM only"),
        ("score.sbatch", {"SLURM_JOB_ID": "1"}, "BLIP2_HOME is not set"),
        ("score.sbatch", {"SLURM_JOB_ID": "1", "BLIP2_HOME": "/nowhere"}, "BLIP2_HOME /nowhere"),
        ("score.sbatch", {"SLURM_JOB_ID": "1", "BLIP2_HOME": str(ROOT)}, "names no task"),
        ("eval_watch", {}, "BLIP2_HOME is not set"),
        ("eval_watch", {"BLIP2_HOME": str(ROOT), "MASTER_PORT": "1"}, "names no list"),
    ],
)
def test_a_script_says_in_one_line_what_it_lacks(script: str, variables: dict[str, str], message: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    command = ["bash", f"slurm/{script}"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
