"""The commands of the demo as steps: trainings, evaluations, scores and indexes of one demo folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.miniature.schedule import Step

WEB_SOURCES = ("laion400m", "cc3m")
STEPS = {
    "stage1": 500, "stage2_t5": 200, "stage2_opt": 350,
    "finetune_retrieval": 120, "finetune_caption": 80, "finetune_vqa": 1000,
}  # fmt: skip
"""The steps of the recipes, which --scale shortens."""
TRAINED = (*STEPS, "stage2_t5_own")


def python(module: str, *arguments: object) -> tuple[str, ...]:
    """`python -m MODULE ARGUMENTS`."""
    return (sys.executable, "-m", module, *(str(argument) for argument in arguments))


class Commands:
    """Makes steps of one demo folder. `scale` shrinks both data and training (for tests); 1 is the whole demo."""

    def __init__(self, folder: Path, seed: int, scale: float, port: int) -> None:
        self.folder, self.seed, self.scale, self.port = folder, seed, scale, port
        self.world, self.towers = folder / "world", folder / "towers"
        self.trained = TRAINED
        """The runs. Each has a port of its own."""

    def scaled(self, number: int, least: int) -> int:
        return max(least, round(number * self.scale))

    def take_coco(self, *needs: str) -> Step:
        coco, output = self.world / "coco", self.folder / "raw" / "coco"
        arguments = ("--input", coco / "dataset_coco.json", "--images", coco / "images", "--split", "train")
        command = python("data_prep.download", "coco", *arguments, "--output", output)
        return Step("download-coco", command, output, needs, folder=output)

    def index(self, step: str, manifest: str, folders: Sequence[Path], needs: tuple[str, ...]) -> Step:
        output = self.folder / manifest
        return Step(step, python("data_prep.index", *folders, "--output", output), output, needs)

    def gallery(self, step: str, index: Step, page: str) -> Step:
        output, ledgers = self.folder / page, (self.folder / "raw" / source for source in WEB_SOURCES)
        command = python("data_prep.gallery", index.output, "--output", output, "--ledger", *ledgers)
        return Step(step, command, output, (index.name,))

    def train(self, run: str, needs: tuple[str, ...], *more: object, recipe: str | None = None, ranks: int = 2) -> Step:
        output = self.folder / run
        path = Path("pipeline/recipes") / f"miniature_{recipe or run}.yaml"
        edits: list[object] = [f"seed={self.seed}", f"run.output={output}"]
        if self.scale != 1:
            steps = self.scaled(STEPS[recipe or run], 6)
            edits += [f"run.steps={steps}", f"run.checkpoint_every_steps={max(2, steps // 3)}", "run.log_every_steps=2"]
        launcher = Path(sys.executable).parent / "deepspeed"
        port = str(self.port + 1 + self.trained.index(run))
        chosen = dict(str(edit).split("=", 1) for edit in (*edits, *more))  # of two for a field, the later one
        command = (str(launcher), "--num_gpus", str(ranks), "--master_port", port, "--module", "pipeline.train")
        return Step(
            f"train-{run}",
            (*command, "--recipe", str(path), "--set", *(f"{field}={value}" for field, value in chosen.items())),
            output / "checkpoints",
            needs,
            folder=output,
        )

    def evaluate(self, name: str, run: str, task: str, data: Path, *more: object) -> Step:
        """Of a run's last checkpoint, or of one that the run's name goes on with."""
        output = self.folder / "eval" / name
        arguments = ("--weights", self.folder / run, "--task", task, "--data", data, "--output", output)
        command = python("eval.run", *arguments, *more)
        return Step(f"eval-{name}", command, output / "COMPLETE", (f"train-{Path(run).parts[0]}",), folder=output)

    def score(self, name: str, task: str, predictions: str, *files: object) -> Step:
        folder = self.folder / "eval" / name
        arguments = ("--predictions", folder / predictions, *files, "--output", folder / "metrics.json")
        arguments = (*arguments, "--per-sample", folder / "per_sample.jsonl")
        return Step(f"score-{name}", python("eval.score", task, *arguments), folder / "metrics.json", (f"eval-{name}",))

    def caption_truth(self) -> tuple[object, ...]:
        """The flags of `eval.score` for COCO's test captions."""
        return ("--annotations", self.world / "coco/annotations/coco_karpathy_test_gt.json")

    def question_truth(self) -> tuple[object, ...]:
        """The same for VQAv2's questions."""
        vqa = self.world / "vqav2"
        questions = ("--questions", vqa / "v2_OpenEnded_mscoco_val2014_questions.json")
        return ("--annotations", vqa / "v2_mscoco_val2014_annotations.json", *questions)
