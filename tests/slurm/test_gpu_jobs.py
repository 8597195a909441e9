"""What each job holds on nodes with eight GPUs, and which of them its ranks see; a short script stands in for them."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster

ROOT = Path(__file__).parents[2]
SAY_GPUS = 'echo "rank=$SLURM_PROCID node=$SLURM_NODEID gpus=$CUDA_VISIBLE_DEVICES"\n'
OF_THIS_PROCESS = "HF_HUB_OFFLINE TOKENIZERS_PARALLELISM"
SAY_SETTINGS = 'echo "$HF_HUB_OFFLINE $TOKENIZERS_PARALLELISM $PYTORCH_ALLOC_CONF" >>settings\n'
TRAINING = ["slurm/train.sbatch", "recipe.yaml"]
EVALUATION = ["slurm/eval.sbatch", "weights", "vqa", "data", "out"]
HELD = ("NumNodes", "NumCPUs", "TresPerNode", "MinMemoryNode")


class Site:
    """The shipped `cluster.env.example`, loaded as it is, whose BLIP2_HOME is `home`."""

    def __init__(self, cluster: Cluster, home: Path, user: Path) -> None:
        self.cluster, self.home, self.user = cluster, home, user
        (user / "blip2").symlink_to(home)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of this repository, by a user who exports `variables` before loading the cluster's values."""
        loaded = f'unset {OF_THIS_PROCESS}; . {ROOT}/slurm/cluster.env.example && exec "$@"'
        found = [str(ROOT / word) if word.startswith("slurm/") else word for word in command]
        return self.cluster.run(
            ["sh", "-c", loaded, "sh", *found], {"HOME": str(self.user), **variables}, cwd=self.home
        )

    def submit(self, *command: str, training: str = SAY_GPUS, **variables: str) -> str:
        (self.home / "training").write_text(training)
        done = self.run("sbatch", "--parsable", *command, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def held(self, job: str) -> list[str]:
        """Nodes, CPUs, GPUs a node and memory (0: all of the node; else none is named) of a job that ends well."""
        facts = self.cluster.wait_until_ended(job)
        assert facts["JobState"] == "COMPLETED", (facts, [path.read_text() for path in self.home.glob("*.out")])
        return [facts.get(name, "").removeprefix("gres:gpu:") for name in HELD]

    def seen(self, job: str) -> list[list[int]]:
        """The GPUs that each rank sees, counted from the first of them on its node that the job holds."""
        [output] = [path for path in self.home.glob("*.out") if path.stem.endswith(f"-{job}")]
        logs = self.home.glob(f"runs/slurm/*-{job}/start_0/*.log")
        text = "".join(path.read_text() for path in (output, *logs))
        said = sorted(
            (int(rank), node, gpus) for rank, node, gpus in re.findall(r"rank=(\d+) node=(\d+) gpus=(.*)", text)
        )
        assert [rank for rank, _, _ in said] == list(range(len(said))), text
        numbers = [(node, [int(gpu) for gpu in gpus.split(",") if gpu]) for _, node, gpus in said]
        first = {
            each: min((gpu for node, gpus in numbers if node == each for gpu in gpus), default=0) for each, _ in numbers
        }
        return [[gpu - first[node] for gpu in gpus] for node, gpus in numbers]


@pytest.fixture
def site(cluster: Cluster, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(cluster, home, tmp_path_factory.mktemp("user"))


def test_with_the_shipped_values_each_job_holds_the_gpus_and_cpus_that_it_uses(site: Site) -> None:
    """Also when the user's profile exports what sbatch would prefer to the scripts' lines."""
    (site.home / "training").write_text(SAY_SETTINGS)
    profile = {"SBATCH_GPUS_PER_NODE": "4", "SBATCH_CPUS_PER_GPU": "2", "SBATCH_GRES": "gpu:8"}
    flags = ["-s", "--annotations A", "stage1.yaml", "stage2.yaml", "vqa", "data", "out"]
    done = site.run("slurm/chain", *flags, **profile)
    assert done.returncode == 0, done.stderr
    jobs = dict(line.split() for line in done.stdout.splitlines())
    alone = {"training": SAY_SETTINGS, "BLIP2_TASK_COUNT": "1", **profile}
    jobs["download"] = site.submit("--array=0", "slurm/download.sbatch", "laion", "t", **alone)
    jobs["capfilt"] = site.submit("--array=0", "slurm/capfilt.sbatch", "laion", **alone)
    whole_nodes = {"stage1": ["2", "128", "8", "0"], "stage2": ["2", "128", "8", "0"], "eval": ["1", "64", "8", "0"]}
    parts = {"score": ["1", "1", "0", ""], "download": ["1", "16", "0", ""], "capfilt": ["1", "8", "1", ""]}
    assert {name: site.held(job) for name, job in jobs.items()} == whole_nodes | parts
    settings = (site.home / "settings").read_text().splitlines()
    ranks, capfilt = settings.count("1 false expandable_segments:True"), settings.count("1 false ")
    assert (ranks, capfilt) == (16 + 16 + 8, 1)


def test_a_site_names_the_shape_of_its_nodes_once_and_a_user_another_for_one_job(site: Site) -> None:
    (site.home / "training").write_text("true\n")
    smaller = f". {ROOT}/slurm/cluster.env.example; BLIP2_GPU_NODE='--gpus-per-node=2 --cpus-per-gpu=4'; exec \"$@\""
    flags = ["-1", "--gpus-per-node=1", "stage1.yaml", "stage2.yaml", "vqa", "data", "out"]
    command = ["sh", "-c", smaller, "sh", str(ROOT / "slurm" / "chain"), *flags]
    done = site.cluster.run(command, {"HOME": str(site.user)}, cwd=site.home)
    assert done.returncode == 0, done.stderr
    held = [site.held(line.split()[1]) for line in done.stdout.splitlines()]
    assert held == [["2", "8", "1", "0"], ["2", "16", "2", "0"], ["1", "8", "2", "0"]]


@pytest.mark.parametrize("script", [TRAINING, EVALUATION], ids=["train", "eval"])
def test_there_is_a_rank_for_each_gpu_and_it_sees_those_of_its_site(site: Site, script: list[str]) -> None:
    """A site binds a GPU to each task, or lets all tasks of a node see all its GPUs."""
    shapes = [  # and what each rank of a node sees
        (["--gpus-per-node=2"], [[0, 1], [0, 1]]),
        (["--gpus-per-node=2", "--gpu-bind=single:1"], [[0], [1]]),
        (["--gpus-per-node=2", "--ntasks-per-node=2", "--gpus-per-task=1"], [[0], [1]]),
        (["--gres=gpu:2"], [[0, 1], [0, 1]]),
        (["--gpus-per-node=1", "--exclusive"], [[0]]),
        (["--gpus-per-node=0", "--ntasks-per-node=2"], [[], []]),
    ]
    jobs = [site.submit("--nodes=2", "--cpus-per-gpu=1", *options, *script) for options, _ in shapes]
    for job, (options, each_sees) in zip(jobs, shapes, strict=True):
        site.held(job)
        assert site.seen(job) == each_sees * 2, options


def test_a_run_that_fails_on_gpus_is_not_taken_for_one_whose_node_has_died(site: Site) -> None:
    """The question to the nodes asks for no more GPUs than the job has, however they are bound."""
    per_task = ["--gpus-per-node=2", "--ntasks-per-node=2", "--gpus-per-task=1"]
    shapes = [["--gres=gpu:2"], ["--gpus-per-node=2", "--gpu-bind=single:1"], per_task]
    for job in [site.submit("--nodes=2", *options, *TRAINING, training="exit 1\n") for options in shapes]:
        facts = site.cluster.wait_until_ended(job)
        assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), facts


@pytest.mark.parametrize("script", [["download", "laion", "tables"], ["capfilt", "laion"]], ids=["download", "capfilt"])
def test_arrays_share_the_tasks_that_one_array_may_not_have(site: Site, script: list[str]) -> None:
    """MaxArraySize is 8 here; nine tasks are two arrays."""
    command = [f"slurm/{script[0]}.sbatch", *script[1:]]
    assert "Invalid job array" in site.run("sbatch", "--array=0-8", *command).stderr
    say = 'echo "$*" | grep -o -e "--task-index.*--task-count [0-9]*" >task$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID\n'
    for offset, tasks in ((0, 8), (8, 1)):
        variables = {"BLIP2_TASK_COUNT": "9", "BLIP2_TASK_OFFSET": str(offset)}
        array = [f"--array=0-{tasks - 1}", "--cpus-per-task=1"]
        job = site.submit(*array, *command, training=say, **variables)
        for task in range(tasks):
            site.held(f"{job}_{task}")
    said = sorted(path.read_text() for path in site.home.glob("task*"))
    assert said == [f"--task-index {task} --task-count 9\n" for task in range(9)]


REFUSED = re.findall(r"\bSBATCH_\w+", (ROOT / "slurm" / "refuse_overruling.sh").read_text().partition("for name in")[2])


@pytest.mark.parametrize("variable", ["SBATCH_GPUS", "SBATCH_GRES", "SBATCH_EXCLUSIVE"])
@pytest.mark.parametrize("script", ["download.sbatch", "capfilt.sbatch", "score.sbatch", "chain", "eval_watch"])
def test_a_variable_that_sbatch_prefers_to_the_scripts_is_named_in_one_line(script: str, variable: str) -> None:
    """It comes from a cluster.env of before, or from a profile that is read after it."""
    known = {"PATH": "/usr/bin:/bin", "BLIP2_HOME": str(ROOT), "BLIP2_DATA": "d", "MASTER_PORT": "1"}
    known |= {"SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0", variable: "8"}
    command = ["bash", f"slurm/{script}", "vqa", "b", "c", "d", "e"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=known, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"slurm/{script}: {variable} 8: overrules") and "unset it" in line


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_example_of_a_clusters_values_unsets_all_of_them(shell: str) -> None:
    assert {"SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_CPUS_PER_GPU", "SBATCH_GRES"} < set(REFUSED)
    command = [shell, "-c", ". slurm/cluster.env.example; env"]
    done = subprocess.run(
        command, check=True, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "HOME": "/h"} | dict.fromkeys(REFUSED, "1"),
        capture_output=True, text=True,
    )  # fmt: skip
    left = {line.partition("=")[0] for line in done.stdout.splitlines() if line.startswith("SBATCH_")}
    assert left == {"SBATCH_ACCOUNT", "SBATCH_PARTITION"}
