"""Runs BLIP-2 in miniature, with the commands that a user would type (`make demo`).

The steps: a drawn world and its web; frozen towers; download, CapFilt, index, verify; stage 1; stage 2 with a T5 and
with an OPT; retrieval, captions and zero-shot VQA on pictures that no training saw; the same after fine-tuning; the
same commands on real photographs; a report.
"""

import json
import os
import sys
import time
from pathlib import Path

from data_prep.miniature.fine_tuning import BEFORE_TUNING, CAPTION_LENGTHS, TUNED, fine_tuning
from data_prep.miniature.schedule import Step
from data_prep.miniature.steps import run_all
from data_prep.miniature.story import TRAINED, WEB_SOURCES, Commands, python
from pipeline.command_line import Parser

LANGUAGE_MODELS = ("t5", "opt")
ANSWER_PROMPTS = {"t5": "question: {} short answer:", "opt": "question: {} short answer:"}


class Story(Commands):
    """The steps of one demo folder."""

    def steps(self) -> list[Step]:
        """All steps, each after those it needs. Of those that may start, the first one starts."""
        return [
            self._draw(),
            self._make_towers("ranker", "clip", "vision"),
            *self._downloads(),
            *self._downloaded(),
            self._make_towers("bert", "bert"),
            self._make_towers("captioner", "blip"),
            *(self._capfilt(source, f"download-{source}") for source in WEB_SOURCES),
            *self._captioned(),
            self.train("stage1", ("index", "towers-ranker", "towers-bert")),
            *(self._make_towers(lm, lm) for lm in LANGUAGE_MODELS),
            *(self.train(f"stage2_{lm}", ("train-stage1", f"towers-{lm}")) for lm in LANGUAGE_MODELS),
            *fine_tuning(self),
            *self._own_pictures(),
            *self._evaluations(),
            *self._scores(),
            *self._conclusions(),
        ]

    def _draw(self) -> Step:
        web, coco, held_out = self.scaled(2400, 96), self.scaled(2000, 48), self.scaled(250, 16)
        sizes = ("--web-images", web, "--coco-images", coco, "--eval-images", held_out)
        command = python("data_prep.miniature.world", "--output", self.world, "--seed", self.seed, *sizes)
        command = (*command, "--base-url", f"http://127.0.0.1:{self.port}")
        return Step("world", command, self.world / "world.json", folder=self.world)

    def _make_towers(self, step: str, *names: str) -> Step:
        arguments = ("--world", self.world, "--output", self.towers, "--seed", self.seed, "--steps-scale", self.scale)
        command = python("data_prep.miniature.towers", *arguments, "--only", *names)
        needs = ("world", "towers-ranker") if "blip" in names else ("world",)
        return Step(f"towers-{step}", command, self.towers / names[-1], needs)

    def _downloads(self) -> list[Step]:
        return [
            self._download("laion400m", "laion.parquet"),
            self._download("cc3m", "cc3m.tsv"),
            self.take_coco("world"),
        ]

    def _download(self, source: str, table: str) -> Step:
        output = self.folder / "raw" / source
        arguments = ("--input", self.world / "web" / table, "--output", output, "--allow-loopback")
        settings = ("--samples-per-shard", 500, "--backoff-s", 0.5, "--processes", 1)
        server = python("data_prep.miniature.server", "--root", self.world / "web", "--port", self.port)
        command = python("data_prep.download", source, *arguments, *settings)
        return Step(f"download-{source}", command, output, ("world",), beside=server, folder=output)

    def _capfilt(self, source: str, download: str) -> Step:
        raw, output = self.folder / "raw" / source, self.folder / "captioned" / source
        towers = ("--captioner", self.towers / "blip", "--ranker", self.towers / "clip", "--max-length", 32)
        command = python("data_prep.capfilt", "--input", raw, "--output", output, *towers, "--seed", self.seed)
        return Step(f"capfilt-{source}", command, output, (download, "towers-captioner"), folder=output)

    def _downloaded(self) -> list[Step]:
        """A first page to look at: the pictures and captions as the web has them."""
        sources = (*WEB_SOURCES, "coco")
        needs = tuple(f"download-{source}" for source in sources)
        index = self.index("downloaded", "downloaded.json", [self.folder / "raw" / each for each in sources], needs)
        return [index, self.gallery("downloaded-gallery", index, "downloaded.html")]

    def _captioned(self) -> list[Step]:
        """The data set that both stages train on, and a page that shows it."""
        folders = [*(self.folder / "captioned" / source for source in WEB_SOURCES), self.folder / "raw" / "coco"]
        needs = (*(f"capfilt-{source}" for source in WEB_SOURCES), "download-coco")
        index = self.index("index", "manifest.json", folders, needs)
        return [index, self.gallery("gallery", index, "gallery.html"), self._verify()]

    def _verify(self) -> Step:
        manifest = self.folder / "manifest.json"
        return Step("verify", python("data_prep.verify", manifest, "--decode"), manifest, ("index",))

    def _evaluations(self) -> list[Step]:
        steps = [
            self.evaluate("retrieval", "stage1", "retrieval", self.world / "flickr30k", "--k-test", 16),
            self.evaluate("nocaps", "stage2_t5", "nocaps", self.world / "nocaps", *CAPTION_LENGTHS),
        ]
        for lm in LANGUAGE_MODELS:
            run = f"stage2_{lm}"
            caption = ("captioning", self.world / "coco", *CAPTION_LENGTHS)
            answer = ("vqa", self.world / "vqav2", "--prompt", ANSWER_PROMPTS[lm])
            steps += [
                self.evaluate(f"captions-{lm}", run, *caption),
                self.evaluate(f"captions-{lm}-shuffled", run, *caption, "--images", "shuffled"),
                self.evaluate(f"vqa-{lm}", run, *answer),
                self.evaluate(f"vqa-{lm}-blind", run, *answer, "--images", "none"),
            ]
        return steps

    def _scores(self) -> list[Step]:
        nocaps = ("--annotations", self.world / "nocaps/nocaps_val_4500_captions.json")
        steps = [
            self.score("retrieval", "retrieval", "scores.npz"),
            self.score("nocaps", "nocaps", "predictions.json", *nocaps),
        ]
        for lm in LANGUAGE_MODELS:
            for suffix in ("", "-shuffled"):
                steps.append(
                    self.score(f"captions-{lm}{suffix}", "captions", "predictions.json", *self.caption_truth())
                )
            for suffix in ("", "-blind"):
                steps.append(self.score(f"vqa-{lm}{suffix}", "vqa", "predictions.json", *self.question_truth()))
        return steps

    def _conclusions(self) -> list[Step]:
        """The numbers and the page of the whole demo."""
        summary, page = self.folder / "summary.json", self.folder / "report.html"
        scored = [step.name for step in self._scores()] + [f"score-{name}" for name in TUNED]
        evaluations = [name.removeprefix("score-") for name in scored]
        runs, manifests = (
            [self.folder / run for run in TRAINED],
            [self.folder / f"{name}.json" for name in ("manifest", "own", "coco", "questions")],
        )
        inputs = (*runs, *(self.folder / "eval" / name for name in (*evaluations, "captions-own")), *manifests)
        before = (self.folder / "eval" / name for name in BEFORE_TUNING)
        titles = ("--title", "BLIP-2 in miniature", "--summary", summary, "--before", *before)
        collect = python("data_prep.miniature.summary", self.folder, "--seed", self.seed)
        return [
            Step("summary", collect, summary, tuple(scored)),
            Step(
                "report",
                python("eval.report", *inputs, "--output", page, *titles),
                page,
                ("summary", "eval-captions-own"),
            ),
        ]

    def _own_pictures(self) -> list[Step]:
        """The same commands on an own table: real photographs, which the models of the drawn world never saw."""
        own, raw = self.folder / "own", self.folder / "raw" / "own"
        table = own / "pictures.csv"
        take = ("table", "--input", table, "--images", own, "--output", raw, "--captions", "web")
        columns = ("--url-column", "file", "--caption-column", "caption")
        training = (
            f"data.manifest={self.folder / 'own.json'}",
            f"init_weights={self.folder / 'stage2_t5'}",
            "batch.global_size=4",
            "batch.micro_size=2",
            "run.steps=10",
            "run.log_every_steps=2",
        )
        return [
            Step("own-pictures", python("data_prep.miniature.own_pictures", "--output", own), table),
            Step("own-download", python("data_prep.download", *take, *columns), raw, ("own-pictures",), folder=raw),
            self._capfilt("own", "own-download"),
            self.index("own-index", "own.json", [self.folder / "captioned" / "own"], ("capfilt-own",)),
            self.train("stage2_t5_own", ("own-index", "train-stage2_t5"), *training, recipe="stage2_t5"),
            self.evaluate("captions-own", "stage2_t5_own", "captioning", own, *CAPTION_LENGTHS),
        ]


def main() -> int:
    parser = Parser(prog="python -m data_prep.miniature.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/miniature"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--port",
        type=int,
        default=8765,
        help="port of the loopback web; the trainings take the next ones (default: %(default)s)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shrinks the world and the training, for example to 0.02 (default: 1)"
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    os.environ.update(MINIATURE=str(arguments.output), OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    steps = Story(arguments.output, arguments.seed, arguments.scale, arguments.port).steps()
    if code := run_all(arguments.output, steps):
        return code
    from data_prep.miniature.summary import as_table

    print(f"\n{as_table(json.loads((arguments.output / 'summary.json').read_text(encoding='utf-8')))}\n")
    print(f"pictures, curves and samples: {arguments.output / 'report.html'}")
    print(f"this call took {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
