"""Runs the paper's ablations in miniature, with several seeds (`make ablations`): Figure 5 and Table 6.

It takes the world, the towers and the captions of a finished demo, and writes nothing there. Figure 5: stage 2 with and
without stage 1's bridge, for both language models, answers questions along the way. Table 6: fine-tuning for retrieval
with and without ITG. Every seed begins with a stage 1 of its own.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.miniature.schedule import Step
from data_prep.miniature.steps import run_all
from data_prep.miniature.story import STEPS, Commands, python
from pipeline.command_line import Parser, positive

FIGURE_5, TABLE_6 = "figure5", "table6"
POINTS = 5
PROMPT = ("--prompt", "question: {} short answer:")
NEEDED = ("world/world.json", "manifest.json", "towers/vision", "towers/bert", "towers/t5", "towers/opt")
"""What is taken of a demo."""


@dataclass(frozen=True)
class Variant:
    """A training that is compared with another one: the demo's recipe with some edits."""

    part: str
    name: str
    recipe: str
    edits: tuple[str, ...] = ()


WITHOUT_STAGE_1 = "init_weights=null"
WITHOUT_ITG = "objectives.itg_weight=0"
VARIANTS = (
    Variant(FIGURE_5, "stage2_t5", "stage2_t5"),
    Variant(FIGURE_5, "stage2_t5-without_stage1", "stage2_t5", (WITHOUT_STAGE_1,)),
    Variant(FIGURE_5, "stage2_opt", "stage2_opt"),
    Variant(FIGURE_5, "stage2_opt-without_stage1", "stage2_opt", (WITHOUT_STAGE_1,)),
    Variant(TABLE_6, "finetune_retrieval", "finetune_retrieval"),
    Variant(TABLE_6, "finetune_retrieval-without_itg", "finetune_retrieval", (WITHOUT_ITG,)),
)


class OneSeed(Commands):
    """The steps of one seed, which decides the order of samples, the crops, the captions and the fresh weights."""

    def __init__(self, demo: Path, folder: Path, seed: int, scale: float, port: int, points: int) -> None:
        super().__init__(folder, seed, scale, port)
        self.demo, self.points = demo, points
        self.world, self.towers = demo / "world", demo / "towers"
        self.stage1 = f"stage1-seed{seed}"
        self.trained = (self.stage1, *map(self._run, VARIANTS))

    def _run(self, variant: Variant) -> str:
        return f"{variant.name}-seed{self.seed}"

    def steps(self, parts: Sequence[str]) -> list[Step]:
        """Stage 1, the trainings of these parts, and their evaluations with scores."""
        steps = [self.train(self.stage1, (), recipe="stage1")]
        for variant in (each for each in VARIANTS if each.part in parts):
            steps += self._answered(variant) if variant.part == FIGURE_5 else self._retrieved(variant)
        return steps

    def _answered(self, variant: Variant) -> list[Step]:
        """A training of stage 2 whose checkpoints answer questions."""
        run, num_steps = self._run(variant), STEPS[variant.recipe]
        if self.scale != 1:
            num_steps = self.scaled(num_steps, 6)
        every = max(1, num_steps // self.points)
        marks = sorted({*range(every, num_steps + 1, every), num_steps})
        saving = (f"run.checkpoint_every_steps={every}", f"run.keep_checkpoints={len(marks)}")
        steps = [self._train(variant, saving)]
        for step in marks:
            name, weights = f"{run}-step{step}", f"{run}/checkpoints/step_{step:08d}"
            steps.append(self.evaluate(name, weights, "vqa", self.world / "vqav2", *PROMPT))
            steps.append(self.score(name, "vqa", "predictions.json", *self.question_truth()))
        return steps

    def _retrieved(self, variant: Variant) -> list[Step]:
        """A fine-tuning for retrieval, evaluated at its end, as the table's is on COCO."""
        run = self._run(variant)
        edits = (f"data.manifest={self.folder / 'coco.json'}",)
        return [
            self._train(variant, edits, "coco"),
            self.evaluate(run, run, "retrieval", self.world / "coco", "--k-test", 16),
            self.score(run, "retrieval", "scores.npz"),
        ]

    def _train(self, variant: Variant, edits: tuple[str, ...], *needs: str) -> Step:
        if WITHOUT_STAGE_1 not in variant.edits:
            edits, needs = (f"init_weights={self.folder / self.stage1}", *edits), (f"train-{self.stage1}", *needs)
        return self.train(self._run(variant), needs, *edits, *variant.edits, recipe=variant.recipe)


def steps_of(
    demo: Path, folder: Path, seeds: Sequence[int], parts: Sequence[str], scale: float, port: int, points: int
) -> list[Step]:
    """All steps, each after those it needs; the page at the end."""
    stories = [
        OneSeed(demo, folder, seed, scale, port + number * (1 + len(VARIANTS)), points)
        for number, seed in enumerate(seeds)
    ]
    coco = stories[0].take_coco()
    steps = [coco, stories[0].index("coco", "coco.json", [coco.output], (coco.name,))]
    steps += [step for story in stories for step in story.steps(parts)]
    scored = [step for step in steps if step.name.startswith("score-")]
    page, evaluations = folder / "report.html", (step.output.parent for step in scored)
    command = python("eval.report", "--ablations", *evaluations, "--output", page, "--title", "Ablations in miniature")
    return [*steps, Step("report", command, page, tuple(step.name for step in scored))]


def time_of_parts(folder: Path, steps: Sequence[Step]) -> str:
    """How long the finished steps of each kind took, as a table for a terminal."""
    rows = []
    for part, begins in (
        ("stage 1 of every seed", ("train-stage1",)),
        ("Figure 5, training", ("train-stage2",)),
        ("Figure 5, evaluation", ("eval-stage2", "score-stage2")),
        ("Table 6, training", ("train-finetune",)),
        ("Table 6, evaluation", ("eval-finetune", "score-finetune")),
    ):
        stamps = [folder / "steps" / f"{step.name}.json" for step in steps if step.name.startswith(begins)]
        if stamps:
            seconds = sum(json.loads(stamp.read_text("utf-8"))["seconds"] for stamp in stamps)
            rows.append(f"{part:<24}{len(stamps):>4} steps {seconds:>7.0f} s")
    return "\n".join(rows)


def main() -> int:
    parser = Parser(prog="python -m data_prep.miniature.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=(FIGURE_5, TABLE_6), help="one of the two ablations; default: both")
    parser.add_argument("--demo", type=Path, default=Path("runs/miniature"), metavar="FOLDER",
                        help="a finished demo, which is only read (default: %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    parser.add_argument("--points", type=positive, default=POINTS, metavar="N",
                        help="about so many checkpoints of a run are evaluated (default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=int, default=8865, help="the trainings take this and the next ones")
    parser.add_argument("--scale", type=float, default=1.0, help="shortens the training, for example to 0.02")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if not (arguments.demo / name).exists()]
    if missing:
        parser.error(f"argument --demo: {arguments.demo} has no {missing[0]}; run make demo, or name its folder")
    started = time.monotonic()
    os.environ.update(MINIATURE=str(arguments.demo), OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    parts = (arguments.only,) if arguments.only else (FIGURE_5, TABLE_6)
    steps = steps_of(arguments.demo, arguments.output, arguments.seeds, parts, arguments.scale, arguments.port,
                     arguments.points)  # fmt: skip
    if code := run_all(arguments.output, steps):
        return code
    print(f"\n{time_of_parts(arguments.output, steps)}\n")
    print(f"means, intervals and the paper's numbers: {arguments.output / 'report.html'}")
    print(f"this call took {time.monotonic() - started:.0f} s; two steps run side by side")
    return 0


if __name__ == "__main__":
    sys.exit(main())
