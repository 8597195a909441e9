"""A home, a run of checkpoints, data and a watch list over them, for `slurm/eval_watch` on the emulated cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.slurm_cluster import Cluster
from tests.support.tiny_evaluation_sets import save_karpathy, save_vqa
from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[2]
SMALL = ["--ntasks-per-node=1", "--gpus-per-node=0"]


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


class WatchedSite:
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

    def watch(
        self, *more_runs: Path, report: list[str] | None = None, **evaluations: Any
    ) -> subprocess.CompletedProcess[str]:
        path = self.folder / "list.yaml"
        runs = [str(run) for run in (self.run, *more_runs)]
        content = {"output": str(self.output), "runs": runs, "evaluations": evaluations, "report": report or []}
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

    def forget_jobs(self, step: int, name: str) -> None:
        """As if the watcher had been killed before it could note them."""
        note = json.loads(self.note(step, name).read_text())
        self.note(step, name).write_text(json.dumps(note | {"jobs": []}))

    def job_names(self, step: int, name: str) -> list[str]:
        from eval.watching.wanted import WatchList, evaluations

        wanted = {"output": self.output, "runs": [self.run], "evaluations": {name: self.vqa}}
        found = next(
            each
            for each in evaluations(WatchList.model_validate(wanted))
            if each.folder == self.note(step, name).parent
        )
        return [found.job_name, f"{found.job_name}-score"]

    def wait(self, step: int, *names: str) -> None:
        for name in names:
            for job in self.jobs(step, name):
                facts = self.cluster.wait_until_ended(job)
                outputs = [path.read_text() for path in self.note(step, name).parent.glob("*.out")]
                assert facts["JobState"] == "COMPLETED", (facts, outputs)


def submissions(outputs: list[str]) -> list[str]:
    return [line for output in outputs for line in output.splitlines() if ": submitted " in line]
