"""What `slurm/train.sbatch` makes of a run's end, a shape and mistakes; a short script stands in for training."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline.data.loader import GRACE_S
from tests.support.slurm_cluster import Cluster

ROOT = Path(__file__).parents[2]
RECIPE = "pipeline/recipes/stage2_vitg_opt2.7b.yaml"
LOADED = {"MASTER_PORT": "29500"}
SHAPE = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0"]


def submit(cluster: Cluster, home: Path, options: list[str], arguments: list[str], training: str) -> str:
    (home / "training").write_text(training)
    command = ["sbatch", "--parsable", *SHAPE, *options, str(ROOT / "slurm" / "train.sbatch"), *arguments]
    done = cluster.run(command, LOADED | {"BLIP2_HOME": str(home)}, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def output_of(home: Path, job: str) -> str:
    return (home / f"blip2-train-{job}.out").read_text()


def start_of(home: Path, job: str, restarts: int) -> Path:
    return home / "runs" / "slurm" / f"blip2-train-{job}" / f"start_{restarts}"


def test_every_rank_knows_the_others_and_writes_its_own_log(cluster: Cluster, home: Path) -> None:
    """On the two of three nodes that the recipe can use."""
    training = 'echo "$SLURM_PROCID $SLURM_LOCALID $(hostname) $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS: $*"\n'
    job = submit(cluster, home, ["--nodes=3"], ["recipe.yaml", "seed=3", "run.output=runs/a b"], training)
    facts = cluster.wait_until_ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), output_of(home, job)
    first, second, _ = cluster.answer("scontrol", "show", "hostnames", facts["NodeList"]).split()
    port = 29500 + int(job) % 1000
    for rank, (local, host) in enumerate([("0", first), ("1", first), ("0", second), ("1", second)]):
        log = (start_of(home, job, 0) / f"rank_{rank}.log").read_text()
        wanted = f"{rank} {local} {host} {first} {port} 1: "
        assert log == wanted + "-u -m pipeline.train --recipe recipe.yaml --set seed=3 run.output=runs/a b\n"


@pytest.mark.parametrize("end", ["exit 75", "kill -USR1 $$", "kill -TERM $$"])
def test_stopped_by_a_signal_a_job_is_requeued_and_ends_well(cluster: Cluster, home: Path, end: str) -> None:
    """Also when the signal came before training could answer it, and when one rank takes its time to leave."""
    training = f"[ -e stopped$SLURM_PROCID ] && exit 0\nsleep $SLURM_PROCID\ntouch stopped$SLURM_PROCID\n{end}\n"
    job = submit(cluster, home, [], ["recipe.yaml"], training)
    facts = cluster.wait_until_ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), output_of(home, job)
    assert len(list(home.glob("stopped*"))) == 4  # every rank got to its end
    assert all((start_of(home, job, start) / "rank_3.log").exists() for start in (0, 1))
    assert "requeued" in output_of(home, job)
    asked = (home / "asked").read_text().splitlines()
    questions = [line for line in asked if "pipeline.cost.recipe_facts" in line]
    assert [("--or-fewer" in line, "--nodes 2" in line) for line in questions] == [(False, True), (True, True)]


def test_a_run_that_fails_is_not_requeued_and_its_error_stands_in_the_jobs_output(cluster: Cluster, home: Path) -> None:
    job = submit(cluster, home, [], ["recipe.yaml"], 'echo "error: batch: wrong" >&2\nexit 1\n')
    facts = cluster.wait_until_ended(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0")
    assert output_of(home, job).splitlines().count("error: batch: wrong") == 1


def test_cancelled_is_cancelled_though_the_ranks_save_first(cluster: Cluster, home: Path) -> None:
    training = "trap 'touch saved$SLURM_PROCID; exit 75' TERM\ntouch up$SLURM_PROCID\nwhile :; do sleep 0.1; done\n"
    job = submit(cluster, home, [], ["recipe.yaml"], training)
    cluster.wait_for(job, lambda _: len(list(home.glob("up*"))) == 4)
    cluster.answer("scancel", job)
    cluster.wait_for(job, lambda _: len(list(home.glob("saved*"))) == 4, 20)
    facts = cluster.wait_for(job, lambda facts: facts["JobState"] != "COMPLETING", 20)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0")


def test_preempted_a_job_saves_in_its_grace_and_is_requeued(cluster: Cluster, home: Path) -> None:
    training = (
        "[ -e saved$SLURM_PROCID ] && exit 0\n"
        "trap 'touch saved$SLURM_PROCID; exit 75' TERM\ntouch up$SLURM_PROCID\nwhile :; do sleep 0.1; done\n"
    )
    job = submit(cluster, home, ["--partition=spare", "--exclusive"], ["recipe.yaml"], training)
    cluster.wait_for(job, lambda _: len(list(home.glob("up*"))) == 4)
    nodes = cluster.facts(job)["NodeList"]
    urgent = ["--nodes=2", f"--nodelist={nodes}", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    cluster.answer("sbatch", *urgent)
    facts = cluster.wait_until_ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), output_of(home, job)


def test_tasks_of_an_array_edit_the_recipe_with_their_number(cluster: Cluster, home: Path) -> None:
    """The last one, whose job id is the whole array's, is stopped and requeued, alone."""
    training = 'echo "$*" >>said$SLURM_ARRAY_TASK_ID\n'
    training += "[ $SLURM_ARRAY_TASK_ID = 3 ] || [ -e stopped ] || { touch stopped; exit 75; }\n"
    job = submit(cluster, home, ["--array=3,5", "--ntasks-per-node=1"], ["r.yaml", "run.output=runs/seed%a"], training)
    for task in ("3", "5"):
        facts = cluster.wait_until_ended(f"{job}_{task}")
        assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0" if task == "3" else "1")
        assert set((home / f"said{task}").read_text().splitlines()) == {
            f"-u -m pipeline.train --recipe r.yaml --set run.output=runs/seed{task}"
        }


def test_when_a_job_of_a_chain_fails_those_after_it_are_cancelled(cluster: Cluster, home: Path) -> None:
    (home / "training").write_text("exit 1\n")
    small = "--nodes=2 --ntasks-per-node=1 --gpus-per-node=0"
    command = [
        str(home / "slurm" / "chain"),
        "-1",
        small,
        "-2",
        small,
        "stage1.yaml",
        "stage2.yaml",
        "vqa",
        "data",
        "out",
    ]
    done = cluster.run([*command, "data.manifest=m"], LOADED | {"BLIP2_HOME": str(home)}, cwd=home)
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split() for line in done.stdout.splitlines())
    states = {name: cluster.wait_until_ended(jobs[name])["JobState"] for name in ("stage1", "stage2", "eval")}
    assert states == {"stage1": "FAILED", "stage2": "CANCELLED", "eval": "CANCELLED"}


def test_a_chain_without_stage_2_fine_tunes_stage_1_and_passes_on_the_flags_of_eval_run(
    cluster: Cluster, home: Path
) -> None:
    (home / "training").write_text('echo "$@" >>said\n')
    small = "--nodes=2 --ntasks-per-node=1 --gpus-per-node=0"
    options = ["-1", small, "-3", small, "-e", small, "-f", "tune.yaml seed=5", "-r", "--split test --top-k 64"]
    command = [str(home / "slurm" / "chain"), *options, "stage1.yaml", "-", "vqa", "data", "out", "data.manifest=m"]
    done = cluster.run(command, LOADED | {"BLIP2_HOME": str(home)}, cwd=home)
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split() for line in done.stdout.splitlines())
    assert list(jobs) == ["stage1", "tune", "eval"]
    assert cluster.wait_until_ended(jobs["eval"])["JobState"] == "COMPLETED"
    assert list(dict.fromkeys((home / "said").read_text().splitlines())) == [
        "-u -m pipeline.train --recipe stage1.yaml --set data.manifest=m",
        "-u -m pipeline.train --recipe tune.yaml --set seed=5",
        "-m eval.run --weights tuned --task vqa --data data --output out --split test --top-k 64",
    ]


def one_line_of(script: list[str], **variables: str) -> str:
    done = subprocess.run(
        ["bash", *script],
        check=False,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode not in {0, 75} and done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("script", ["train", "eval"])
def test_a_job_script_says_in_one_line_what_it_lacks(script: str) -> None:
    path, home = [f"slurm/{script}.sbatch"], str(ROOT)
    assert "runs under SLURM only" in one_line_of(path)
    assert "BLIP2_HOME: is not set" in one_line_of(path, SLURM_JOB_ID="1")
    assert "MASTER_PORT: is not set" in one_line_of(path, SLURM_JOB_ID="1", BLIP2_HOME=home)
    loaded = {"SLURM_JOB_ID": "1", "BLIP2_HOME": "/nowhere", "MASTER_PORT": "1"}
    assert "BLIP2_HOME /nowhere" in one_line_of(path, **loaded)
    missing = "RECIPE: is missing" if script == "train" else "WEIGHTS: is missing"
    assert missing in one_line_of(path, **loaded | {"BLIP2_HOME": home})


def test_a_rank_that_waits_for_its_loaders_workers_is_not_killed() -> None:
    """srun kills what is left some time after the first rank has ended, whether it ended well or not."""
    joins_s = 5 + GRACE_S  # torch's loader, then Python at its end
    for name, pattern in (("train.sbatch", r"^PATIENCE_S=(\d+)"), ("eval.sbatch", r"--wait=(\d+)")):
        [seconds] = re.findall(pattern, (ROOT / "slurm" / name).read_text(), re.MULTILINE)
        assert joins_s < int(seconds) <= 30


def test_a_chain_whose_stages_do_not_fit_is_refused_before_a_job_is_submitted(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/bash\ntouch submitted\n")
    sbatch.chmod(0o755)
    chain, loaded = ["slurm/chain"], {"PATH": f"{tmp_path}:/usr/bin:/bin", "BLIP2_HOME": str(ROOT), "MASTER_PORT": "1"}
    assert "TASK: is missing" in one_line_of([*chain, "a.yaml", "b.yaml"], **loaded)
    assert "-1 OPTIONS" in one_line_of([*chain, "-x"], **loaded)
    rest = ["pipeline/recipes/stage2_vitl_opt2.7b.yaml", "vqa", "data", "out"]
    assert "BLIP2_HOME: is not set" in one_line_of([*chain, "a.yaml", *rest])
    assert "recipe gone.yaml: no such file" in one_line_of([*chain, "gone.yaml", *rest], **loaded)
    wrong_task = ["gone.yaml", rest[0], "vqqa", "data", "out"]
    assert "TASK 'vqqa': is not a task; use one of captioning" in one_line_of([*chain, *wrong_task], **loaded)
    edits = ["data.manifest=m", "batch.global_size=1920"]
    line = one_line_of([*chain, "pipeline/recipes/stage1_vitg.yaml", *rest, *edits], **loaded)
    assert "init_weights 'runs/stage1_vitl': stage 2 must start from stage 1's run.output 'runs/stage1_vitg'" in line
    stages = ["pipeline/recipes/stage1_vitg.yaml", "pipeline/recipes/stage2_vitg_opt2.7b.yaml", *rest[1:]]
    line = one_line_of([*chain, "-f", "pipeline/recipes/finetune_caption_opt6.7b.yaml seed=3", *stages], **loaded)
    assert "init_weights 'runs/stage2_vitg_opt6.7b': fine-tuning must start from 'runs/stage1_vitg' or" in line
    other = "pipeline/recipes/finetune_vqa_opt2.7b.yaml init_text_weights=runs/stage1_vitl"
    line = one_line_of([*chain, "-f", other, *stages], **loaded)
    assert "init_text_weights 'runs/stage1_vitl': must be stage 1's run.output 'runs/stage1_vitg'" in line
    assert not (ROOT / "submitted").exists()


def test_training_refuses_a_missing_recipe_and_tasks_that_do_not_match_gpus() -> None:
    job = {"SLURM_JOB_ID": "1", "BLIP2_HOME": str(ROOT), "MASTER_PORT": "1", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "4"}
    assert "recipe gone.yaml: no such file" in one_line_of(["slurm/train.sbatch", "gone.yaml"], **job)
    line = one_line_of(["slurm/train.sbatch", RECIPE], SLURM_GPUS_PER_NODE="a100:8", **job)
    assert "--ntasks-per-node 1: is not the number of GPUs a node, a100:8" in line


@pytest.mark.parametrize("script", ["download", "capfilt"])
def test_a_part_of_an_array_does_not_guess_how_many_tasks_there_are(script: str) -> None:
    command = [f"slurm/{script}.sbatch", "laion", "table"]
    for ids, count in (((3, 3, 3), 1), ((0, 0, 0), 1), ((2, 1, 4), 4), ((2, 0, 6), 4)):
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
        given = dict(zip(names, map(str, ids), strict=True)) | {"SLURM_ARRAY_TASK_COUNT": str(count)}
        line = one_line_of(command, BLIP2_HOME=str(ROOT), BLIP2_DATA="/nowhere", **given)
        assert f"slurm/{script}.sbatch: --array: task {ids[0]} of" in line and "BLIP2_TASK_COUNT=16 sbatch" in line


def test_a_whole_array_and_a_told_count_are_taken() -> None:
    say = f'. {ROOT}/slurm/count_tasks.sh x.sbatch && echo "$task of $tasks"'
    whole = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    edges = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3"}
    part = whole | {"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3"}
    told = {"BLIP2_TASK_COUNT": "2000", "BLIP2_TASK_OFFSET": "1000"}
    for variables, said in ((whole | edges, "3 of 4"), (part | told, "1003 of 2000")):
        done = subprocess.run(["bash", "-c", say], check=True, capture_output=True, text=True, env=variables)
        assert done.stdout.strip() == said
    for option in ("--task-count 16", "--task-count=16"):  # which the command takes in place of this script's
        taken = subprocess.run(["bash", "-c", say.replace("x.sbatch", f"x.sbatch --retries 1 {option}")],
                               check=True, capture_output=True, text=True, env=part)  # fmt: skip
        assert taken.stdout.strip() == "3 of 1"
