"""`python -m eval.report DIR... --output report.html`: one HTML file of scores, curves and samples to look at.

DIR is a training run's folder (metrics.jsonl), an evaluation's (task.json of eval.run, metrics.json of eval.score, and
per_sample.jsonl where eval.score wrote one), a folder of eval.watch (step_N/NAME: curves over checkpoints, and the last
step in full), or a data manifest. The page asks nothing of any server.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.command_line import Parser, finish, print_settings

PAGE_START = b"<!doctype html"
TEMPLATES = Path(__file__).with_name("reporting")


@dataclass
class Contents:
    """What the given folders hold."""

    evaluations: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)
    over_steps: list[Path] = field(default_factory=list)


def classify(paths: Sequence[Path]) -> Contents:
    """Sort the given folders and files by what they are. Raises ValueError for one that is nothing of this."""
    found = Contents()
    for path in paths:
        known = False
        for place, name in ((found.evaluations, "task.json"), (found.runs, "metrics.jsonl")):
            if (path / name).is_file():
                place.append(path)
                known = True
        for file in (path, path / "manifest.json"):
            if file.is_file() and _is_manifest(file):
                found.manifests.append(file)
                known = True
        if evaluated := [task.parent for task in sorted(path.glob("step_*/*/task.json"))]:
            found.over_steps.append(path)
            last = {folder.name: folder for folder in evaluated}  # of each evaluation, the last step that is scored,
            last |= {folder.name: folder for folder in evaluated if (folder / "metrics.json").is_file()}  # if any is
            found.evaluations += last.values()
            known = True
        if not known:
            raise ValueError(
                f"{path}: no task.json, metrics.jsonl or manifest in it; name folders of eval.run or pipeline.train, "
                "or a manifest of data_prep.index"
            )
    return found


def _is_manifest(file: Path) -> bool:
    from pipeline.data.manifest import FORMAT

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def check_page(path: Path) -> None:
    """Raise ValueError for a file that is there and is no page: it may be one of those that the report is made from."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(len(PAGE_START)).lower() == PAGE_START:
                raise ValueError(f"--output {path}: is there and is no HTML page, perhaps an input; name another file")


def report_page(
    contents: Contents, title: str, summary: Path | None, each: int, seed: int, training: Sequence[Path] = ()
) -> str:
    """The page."""
    from eval.reporting.checkpoints import checkpoint_charts
    from eval.reporting.evaluations import read_evaluation, with_baselines
    from eval.reporting.galleries import gallery_of
    from eval.reporting.overlap import set_overlaps
    from eval.reporting.score_cards import score_card
    from eval.reporting.summary import read_summary
    from eval.reporting.training_curves import training_charts
    from eval.reporting.training_data import training_data
    from pipeline.pages.page import render

    compared = with_baselines([read_evaluation(folder) for folder in contents.evaluations])
    over_steps = [(folder.name, checkpoint_charts(folder)) for folder in contents.over_steps]
    return render(
        TEMPLATES,
        "report.html",
        title=title,
        summary=read_summary(summary) if summary else None,
        score_cards=[score_card(each_compared) for each_compared in compared],
        over_steps=[(name, charts) for name, charts in over_steps if charts],
        runs=[(run.name, training_charts(run)) for run in contents.runs],
        overlaps=set_overlaps([each_compared.main for each_compared in compared], training),
        is_compared=bool(training),
        galleries=[gallery for each_compared in compared if (gallery := gallery_of(each_compared, each, seed))],
        training_data=[training_data(manifest, 2 * each, seed) for manifest in contents.manifests],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="report.html")
    parser.add_argument("--title", default="Evaluation report")
    parser.add_argument("--summary", type=Path, metavar="summary.json", help="nested numbers to show on top")
    parser.add_argument("--samples", type=int, default=8, help="how many of each kind the galleries show (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the random samples")
    parser.add_argument("--training-hashes", type=Path, nargs="+", default=[], metavar="P",
                        help="parquets with a column phash, or folders: names pictures near one")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"argument --samples: {options.samples}, expected at least 1")
    print_settings(options)

    def work() -> None:
        from eval.tasks.predictions import write_durably

        check_page(options.output)
        content = report_page(
            classify(options.folders),
            options.title,
            options.summary,
            options.samples,
            options.seed,
            options.training_hashes,
        )
        write_durably(options.output, content.encode(errors="replace"))  # names of folders may be no Unicode
        print(options.output)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
