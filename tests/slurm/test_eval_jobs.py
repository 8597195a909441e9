"""`slurm/eval_watch` and its jobs on a real SLURM: each checkpoint evaluated once, scored, drawn."""

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster
from tests.support.watched_site import ROOT, SMALL, WatchedSite, save_checkpoint, submissions


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> WatchedSite:
    return WatchedSite(cluster, tmp_path)


@pytest.fixture
def shipped_values(site: WatchedSite) -> None:
    """The site has the values of `cluster.env.example` as it is."""
    (site.folder / "blip2").symlink_to(site.variables["BLIP2_HOME"])
    command = [
        "env",
        "-i",
        f"HOME={site.folder}",
        "PATH=/usr/bin:/bin",
        "sh",
        "-c",
        ". slurm/cluster.env.example && env",
    ]
    lines = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    site.variables |= dict(line.split("=", 1) for line in lines)


def save_hashes(folder: Path) -> Path:
    """A ledger's hashes of training pictures."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"phash": pyarrow.array([7, 2**60], pyarrow.uint64())}), folder / "ledger.parquet"
    )
    return folder / "ledger.parquet"


def test_each_whole_checkpoint_is_evaluated_once_and_drawn_over_steps(site: WatchedSite) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save_checkpoint(site.run, 2)
    late = save_checkpoint(site.run, 4, complete=False)
    wanted = {"vqa": site.vqa, "coco": site.captions, "report": ["--training-hashes", str(save_hashes(site.folder))]}
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
    assert "not checked" not in report and "of 3 pictures" in report


def test_scores_of_replaced_weights_are_outdated_and_those_of_copied_ones_are_not(tmp_path: Path) -> None:
    from eval.watching.states import stamp_of, state_of
    from eval.watching.wanted import WatchList, evaluations
    from pipeline.files import sha256_of

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


def test_a_failed_evaluation_is_named_and_not_submitted_again(site: WatchedSite) -> None:
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


def test_a_watcher_killed_between_submitting_and_noting_leaves_no_second_job(site: WatchedSite) -> None:
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
    assert sorted(queued) == site.job_names(2, "vqa")
    site.cluster.answer("scontrol", "release", jobs[0])
    site.wait(2, "vqa")


def test_a_watcher_killed_while_sbatch_is_in_flight_leaves_no_second_job(site: WatchedSite) -> None:
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
        assert "another eval.watch is at work" in site.watch(vqa=held).stdout
        go_on.touch()
        assert killed.result().returncode != 0
    for _ in range(100):
        if submissions([(done := site.watch(vqa=held)).stdout]):
            break
        assert "another eval.watch is at work" in done.stdout, done
    queued = site.cluster.answer("squeue", "--noheader", "--format=%j %i").split()
    assert sorted(queued[::2]) == site.job_names(2, "vqa")
    assert sorted(queued[1::2]) == sorted(site.jobs(2, "vqa"))
    site.cluster.answer("scancel", *site.jobs(2, "vqa"))


@pytest.mark.usefixtures("shipped_values")
def test_the_evaluation_holds_a_nodes_gpus_and_its_scores_none(site: WatchedSite) -> None:
    save_checkpoint(site.run, 2)
    held = {"sbatch": ["--hold"]}
    smaller = {"sbatch": ["--hold", "--gpus-per-node=2", "--cpus-per-gpu=3"]}
    done = site.watch(vqa=site.vqa | held, small=site.vqa | smaller)
    assert "2 submitted" in done.stdout, done
    site.variables["BLIP2_GPU_NODE"] = "--gpus-per-node=4 --cpus-per-gpu=5"
    done = site.watch(vqa=site.vqa | held, small=site.vqa | smaller, other=site.vqa | held)
    assert "1 submitted" in done.stdout, done
    jobs = [site.cluster.facts(job) for name in ("vqa", "small", "other") for job in site.jobs(2, name)]
    site.cluster.answer("scancel", *(facts["JobId"] for facts in jobs))
    assert [facts["TresPerNode"] for facts in jobs] == [f"gres:gpu:{gpus}" for gpus in (8, 0, 2, 0, 4, 0)]
    cpus = ["gres:gpu:8", None, "gres:gpu:3", None, "gres:gpu:5", None]
    assert [facts.get("CpusPerTres") for facts in jobs] == cpus


def test_jobs_of_another_list_or_evaluation_are_not_taken_for_ones_own(site: WatchedSite) -> None:
    save_checkpoint(site.run, 2)
    held = site.vqa | {"sbatch": [*SMALL, "--hold"]}
    wanted = {"vqa": held, "vqa-score": held}
    assert "2 submitted" in site.watch(**wanted).stdout
    first = {name: site.jobs(2, name) for name in wanted}
    site.cluster.answer("scancel", first["vqa"][1])
    site.cluster.wait_for(first["vqa"][1], lambda facts: facts["JobState"] == "CANCELLED")
    site.forget_jobs(2, "vqa")
    assert "1 submitted" in site.watch(**wanted).stdout
    assert site.jobs(2, "vqa")[0] == first["vqa"][0] and site.jobs(2, "vqa")[1] not in first["vqa-score"]
    own = [job for name in wanted for job in site.jobs(2, name)]

    site.output = site.folder / "other"  # of a run of the same name; its watcher was killed before sbatch
    for name in wanted:
        site.note(2, name).parent.mkdir(parents=True)
        site.note(2, name).write_text('{"jobs": [], "outputs": []}')
    assert "2 submitted" in site.watch(**wanted).stdout
    others = [job for name in wanted for job in site.jobs(2, name)]
    names = site.cluster.answer("squeue", "--noheader", "--format=%j").split()
    site.cluster.answer("scancel", *own, *others)
    assert len({*own, *others}) == 8 and len(set(names)) == 8


def test_a_list_changed_while_a_watcher_was_killed_does_not_take_its_jobs_for_new_ones(site: WatchedSite) -> None:
    save_checkpoint(site.run, 2)
    held = site.vqa | {"sbatch": [*SMALL, "--hold"]}
    site.watch(vqa=held)
    jobs = site.jobs(2, "vqa")
    site.forget_jobs(2, "vqa")
    changed = held | {"run": ["--num-beams", "1"]}
    assert "1 submitted" in site.watch(vqa=changed).stdout and site.jobs(2, "vqa") == jobs
    done = site.watch(vqa=changed)
    site.cluster.answer("scancel", *jobs)
    assert "1 other settings" in done.stdout and f"scancel {' '.join(jobs)}" in done.stderr


def test_a_job_that_sbatch_did_not_acknowledge_in_time_is_not_submitted_again(
    site: WatchedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.watching import jobs, slurm_commands
    from eval.watching.wanted import WatchList, evaluations

    save_checkpoint(site.run, 2)
    wanted = {"output": site.output, "runs": [site.run], "evaluations": {"vqa": {"task": "vqa", "data": "d"}}}
    [evaluation] = evaluations(WatchList.model_validate(wanted))
    monkeypatch.setattr(slurm_commands, "ANSWER_S", 0.2)
    slow = site.folder / "slow"
    slow.mkdir()
    (slow / "sbatch").write_text("#!/bin/bash\nsleep 5\n")
    (slow / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match=r"sbatch: no answer in 0.2 s"):
        jobs.submit(evaluation, ROOT / "slurm", 2)
    note = json.loads(site.note(2, "vqa").read_text())
    assert note["jobs"] == [] and note["outputs"] == []  # the intent stays, and names what it is to be told by
    (evaluation.folder / f"{evaluation.job_name}-77.out").touch()  # the job had been taken, and ended
    assert "1 failed" in site.watch(vqa=site.vqa).stdout and site.jobs(2, "vqa") == ["77"]


def test_a_checkpoint_pruned_meanwhile_is_skipped_and_a_missing_run_is_named(site: WatchedSite) -> None:
    site.run.mkdir()
    assert site.watch(vqa=site.vqa).stdout.endswith("no complete checkpoint yet\n")
    pruned = save_checkpoint(site.run, 2)
    held = site.vqa | {"sbatch": [*SMALL, "--hold"]}
    site.before_sbatch(f"rm -rf {pruned}")
    done = site.watch(site.folder / "stage3", first=held, second=held)
    assert done.returncode == 1 and "1 checkpoint removed meanwhile, 1 submitted" in done.stdout, done
    assert f"runs: no folder {site.folder / 'stage3'}" in done.stderr and done.stderr.count("\n") == 1
    assert not site.note(2, "second").exists()
    assert site.watch(first=held).stdout.endswith("\n1 waiting\n")
    jobs = site.jobs(2, "first")
    site.cluster.answer("scancel", *jobs)
    for job in jobs:
        site.cluster.wait_for(job, lambda facts: facts["JobState"] == "CANCELLED")
    for _ in range(2):
        done = site.watch(first=held)
        assert done.stdout.endswith("\n1 lost\n") and done.stderr.count("\n") == 1, done
        assert str(site.note(2, "first").parent) in done.stderr and "run.keep_every_steps" in done.stderr


def test_what_sbatch_refuses_is_one_line_and_leaves_no_job(site: WatchedSite) -> None:
    save_checkpoint(site.run, 2)
    done = site.watch(vqa=site.vqa | {"score_sbatch": ["--partition=nowhere"]})
    assert done.returncode == 1 and "invalid partition" in done.stderr and done.stderr.count("\n") == 1
    assert not site.note(2, "vqa").exists()
    assert not site.cluster.answer("squeue", "--noheader", "--states=PENDING,RUNNING").strip()
