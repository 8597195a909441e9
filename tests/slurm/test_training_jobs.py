"""The shipped job scripts on a real SLURM: stage 1 meets every kind of stop, then come stage 2, eval and scores."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.gloo_ranks import run_on_ranks
from tests.support.slurm_cluster import Cluster
from tests.support.tiny_evaluation_sets import save_vqa
from tests.support.tiny_runs import lines_of, train_here
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[2]
STEPS = 40
TRAINED = {"vision": {"trained": True}, "optimizer": {"layer_decay": 0.9}}


def write_recipe(folder: Path, name: str, stage: int, ranks: int, steps: int, **top: Any) -> Path:
    content: dict[str, Any] = tiny_recipe(
        folder / "towers", folder / "data" / "train.json", folder / name, stage, "opt" if stage == 2 else None
    )
    content["batch"] = {"global_size": 8, "micro_size": 8 // ranks}
    content["run"] |= {"steps": steps, "checkpoint_every_steps": 10, "zero": str(ROOT / "ds_configs" / "zero2.json")}
    path = folder / f"{name}.yaml"
    for section, fields in top.items():
        content[section] = content[section] | fields if isinstance(fields, dict) else fields
    path.write_text(yaml.safe_dump(content))
    return path


def link_home(home: Path) -> dict[str, str]:
    """A BLIP2_HOME of this repository whose logs stay out of it, as cluster.env would give it."""
    home.mkdir()
    for name in ("pipeline", "eval", "slurm", "ds_configs"):
        (home / name).symlink_to(ROOT / name)
    (home / ".venv").symlink_to(sys.prefix)
    return {"BLIP2_HOME": str(home), "MASTER_PORT": "29500"}


@dataclass
class Chain:
    cluster: Cluster
    folder: Path
    jobs: dict[str, str]
    name: str = "stage1"

    def last_step(self) -> int:
        """The last step that stage 1, or the run of this name, has logged."""
        metrics = self.folder / self.name / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def wait_for_start(self, restarts: int) -> dict[str, str]:
        """Until stage 1 has been started `restarts` times more and trains: it logs steps that were not there."""
        job, before = self.jobs["stage1"], -1

        def trains(facts: dict[str, str]) -> bool:
            nonlocal before
            if facts["JobState"] != "RUNNING" or int(facts["Restarts"]) != restarts:
                return False
            if before < 0:
                before = self.last_step()
            return self.last_step() > before

        return self.cluster.wait_for(job, trains)

    def run_undisturbed(self, dead: str) -> str:
        """Stage 1 again as another job, on the other two nodes by the deepspeed launcher (slurm/README.md). Its id."""
        recipe = write_recipe(self.folder, "undisturbed", 1, 2, STEPS)
        lines = [
            f"cd {ROOT}",
            f"scontrol show hostnames $SLURM_JOB_NODELIST | sed 's/$/ slots=1/' >{self.folder}/hosts",
            f"export MASTER_PORT=29400 MASTER_ADDR=$(head -n 1 {self.folder}/hosts | cut -d ' ' -f 1)",
            f"{Path(sys.executable).with_name('deepspeed')} --hostfile {self.folder}/hosts --launcher slurm "
            f"--no_ssh_check --master_addr $MASTER_ADDR -- -m pipeline.train --recipe {recipe}",
        ]
        shape = ["--nodes=2", "--ntasks-per-node=1", f"--exclude={dead}", f"--output={self.folder}/undisturbed.out"]
        return self.cluster.answer("sbatch", "--parsable", *shape, "--wrap", "\n".join(lines)).strip()

    def last_weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "checkpoints" / f"step_{STEPS:08d}" / "trainable.safetensors")

    def ranks(self) -> list[str]:
        """Process ids of stage 1's ranks on all nodes, as the controller's host sees them."""
        pattern = rf"^\S*python -u -m pipeline.train --recipe {self.folder}/stage1.yaml"
        return self.cluster.answer("pgrep", "-f", pattern).split()


@pytest.fixture(scope="module")
def num_nodes() -> int:
    """Stage 1's two, and one for the place of the one that dies."""
    return 3


@pytest.fixture(scope="module")
def chain(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The jobs, submitted: stage 1 on two nodes, the others on one, a rank a node."""
    folder = tmp_path_factory.mktemp("chain")
    tiny_manifest(folder / "data", 40, samples_per_shard=8)
    stage1 = write_recipe(folder, "stage1", 1, 2, STEPS)
    stage2 = write_recipe(folder, "stage2", 2, 1, 3, init_weights=str(folder / "stage1"))
    tune = write_recipe(folder, "tune", 2, 1, 3, init_weights=str(folder / "stage2"), **TRAINED)
    save_vqa(folder / "vqav2", 2)
    small = "--gpus-per-node=0 --ntasks-per-node=1"
    options = ["-1", f"--nodes=2 --signal=USR1@60 {small}", "-2", f"--nodes=1 {small}", "-e", small]
    truth = [f"--annotations {folder}/vqav2/v2_mscoco_val2014_annotations.json"]
    truth += [f"--questions {folder}/vqav2/v2_OpenEnded_mscoco_val2014_questions.json"]
    options += ["-s", " ".join(truth), "-f", f"{tune} seed=5", "-3", f"--nodes=1 {small}"]
    task = ["vqa", str(folder / "vqav2"), str(folder / "predictions")]
    site = link_home(folder / "home")
    command = [str(ROOT / "slurm" / "chain"), *options, str(stage1), str(stage2), *task]
    done = cluster.run([*command, f"data.manifest={folder}/data/train.json"], site, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Chain(cluster, folder, dict(line.split() for line in done.stdout.splitlines()))


def test_stage_1_survives_a_signal_its_time_limit_and_a_nodes_death_to_the_bit(chain: Chain, cluster: Cluster) -> None:
    job = chain.jobs["stage1"]
    chain.wait_for_start(0)
    cluster.answer("scancel", "--signal=USR1", job)

    facts = chain.wait_for_start(1)
    ranks = chain.ranks()
    assert len(ranks) == 2
    cluster.answer("kill", "-STOP", *ranks)  # not to end before the limit, whose signal SLURM sends with a SIGCONT
    hours, minutes, _ = (int(part) for part in facts["RunTime"].split(":"))
    cluster.answer("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    cluster.wait_for(job, lambda facts: facts["Restarts"] == "2")
    cluster.answer("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    facts = chain.wait_for_start(2)
    victim = cluster.answer("scontrol", "show", "hostnames", facts["NodeList"]).split()[1]  # not the batch script's
    cluster.act("crash", victim)
    undisturbed = chain.run_undisturbed(victim)  # beside it, once no node is to die any more

    facts = cluster.wait_until_ended(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "3"), facts
    # On two nodes again, the third in the dead one's place: the weights are those of the same number of ranks.
    assert victim not in cluster.answer("scontrol", "show", "hostnames", facts["NodeList"]).split()
    facts = cluster.wait_until_ended(undisturbed)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), (chain.folder / "undisturbed.out").read_text()
    found, wanted = chain.last_weights("stage1"), chain.last_weights("undisturbed")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_stage_2_fine_tuning_and_eval_follow_stage_1_though_it_was_requeued(chain: Chain, cluster: Cluster) -> None:
    for name in chain.jobs:
        facts = cluster.wait_until_ended(chain.jobs[name])
        assert facts["JobState"] == "COMPLETED", (name, facts)
    assert json.loads((chain.folder / "predictions" / "metrics.json").read_text())["n"] == 4
    for run in ("stage2", "tune"):
        assert (chain.folder / run / "checkpoints" / "step_00000003" / "COMPLETE").exists()
    assert yaml.safe_load((chain.folder / "tune" / "recipe.yaml").read_text())["seed"] == 5
    assert json.loads((chain.folder / "predictions" / "task.json").read_text())["recipe"]["vision"]["trained"] is True
    answers = json.loads((chain.folder / "predictions" / "predictions.json").read_text())
    assert [answer["question_id"] for answer in answers] == [10, 11, 20, 21]


def test_a_trained_encoder_goes_on_after_a_signal_and_after_a_nodes_death_with_fewer_ranks(
    chain: Chain, cluster: Cluster
) -> None:
    """Of two nodes one is left, which accumulates twice as much."""
    for name in chain.jobs:
        cluster.wait_until_ended(chain.jobs[name])
    deadline = time.monotonic() + 120
    while cluster.answer("sinfo", "-h", "-t", "idle", "-o", "%D").strip() != "2":  # the job would start with fewer
        assert time.monotonic() < deadline, cluster.answer("sinfo")
        time.sleep(0.5)
    fields = {"init_weights": str(chain.folder / "stage1"), "qformer": {"dropout": 0.0}, **TRAINED}
    recipe = write_recipe(chain.folder, "fewer", 2, 2, STEPS, **fields)
    options = ["--nodes=1-2", "--gpus-per-node=0", f"--output={chain.folder}/fewer.out"]
    site = {"BLIP2_HOME": str(chain.folder / "home"), "MASTER_PORT": "29500"}
    done = cluster.run(["sbatch", "--parsable", *options, f"{ROOT}/slurm/train.sbatch", str(recipe)], site)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    fewer = Chain(cluster, chain.folder, {"stage1": job}, "fewer")
    fewer.wait_for_start(0)
    cluster.answer("scancel", "--signal=USR1", job)
    facts = fewer.wait_for_start(1)
    nodes = cluster.answer("scontrol", "show", "hostnames", facts["NodeList"]).split()
    assert len(nodes) == 2
    cluster.act("crash", nodes[1])
    facts = cluster.wait_until_ended(job)
    output = (chain.folder / "fewer.out").read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), output
    assert "start 1: 2 x 1 ranks" in output and "start 2: 1 x 1 ranks" in output
    alone = write_recipe(chain.folder, "alone", 2, 1, STEPS, **fields)
    [(code, _, errors)] = run_on_ranks(1, train_here, ["--recipe", str(alone)])
    assert code == 0, errors
    found, wanted = (lines_of(chain.folder / name) for name in ("fewer", "alone"))
    assert [(line["step"], line["samples"]) for line in found] == [(line["step"], line["samples"]) for line in wanted]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=1e-4)
