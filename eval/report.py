"""Show scores, curves and samples on one HTML page: `python -m eval.report DIR... --output report.html`.

DIR is one of these:
- a training run: metrics.jsonl
- an evaluation: task.json of eval.run, metrics.json and per_sample.jsonl of eval.score
- a folder of eval.watch, with step_N/NAME: shows curves over the checkpoints, and the last step in full
- a data manifest, or the folder of one

With --ablations the page has Figure 5 and Table 6 of the paper, from evaluations of several seeds.
The page loads nothing from the network.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.command_line import Parser, finish, print_settings

PAGE_START = b"<!doctype html"
TEMPLATES = Path(__file__).with_name("reporting")


@dataclass
class Contents:
    """The given folders, by what they are."""

    evaluations: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)
    over_steps: list[Path] = field(default_factory=list)


def classify(paths: Sequence[Path]) -> Contents:
    """Sort the given folders and files by what they are. Raises ValueError for a folder that is none of these."""
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
            # The last step of each evaluation; if some steps are scored, the last of those.
            last = {folder.name: folder for folder in evaluated}
            last |= {folder.name: folder for folder in evaluated if (folder / "metrics.json").is_file()}
            found.evaluations += last.values()
            known = True
        if not known:
            raise ValueError(
                f"DIR {path}: has no task.json, metrics.jsonl or manifest; give a folder of eval.run, eval.watch or "
                "pipeline.train, or a manifest of data_prep.index"
            )
    return found


def _is_manifest(file: Path) -> bool:
    from pipeline.data.manifest import FORMAT
    from pipeline.files import read_whole

    try:
        content = json.loads(read_whole(file).decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def check_page(path: Path) -> None:
    """Raise ValueError for a file that is not a page: it may be an input of this report."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if not file.read(len(PAGE_START)).lower() == PAGE_START:
                raise ValueError(
                    f"--output {path}: exists and is not an HTML page, perhaps an input; give another file"
                )


def report_page(
    contents: Contents,
    title: str,
    summary: Path | None,
    num_samples: int,
    seed: int,
    training: Sequence[Path] = (),
    before: Sequence[Path] = (),
    ablated: Sequence[Path] = (),
) -> str:
    """The page as text, its sections in their order. The last three are what the flags of nearly these names give."""
    from eval.reporting.ablations import ablations
    from eval.reporting.changes import changes
    from eval.reporting.checkpoints import checkpoint_charts
    from eval.reporting.evaluations import read_evaluation, with_baselines
    from eval.reporting.galleries import gallery_of
    from eval.reporting.overlap import set_overlaps
    from eval.reporting.score_cards import score_card
    from eval.reporting.summary import read_summary
    from eval.reporting.training_curves import training_charts
    from eval.reporting.training_data import training_data
    from pipeline.pages.page import render

    evaluations = with_baselines([read_evaluation(folder) for folder in contents.evaluations])
    galleries = [gallery_of(each, num_samples, seed) for each in evaluations]
    over_steps = [(folder.name, checkpoint_charts(folder)) for folder in contents.over_steps]
    return render(
        TEMPLATES,
        "report.html",
        title=title,
        summary=read_summary(summary) if summary else None,
        ablations=ablations(ablated),
        score_cards=[score_card(each) for each in evaluations],
        over_steps=[(name, charts) for name, charts in over_steps if charts],
        runs=[(run.name, training_charts(run)) for run in contents.runs],
        overlaps=set_overlaps([each.main for each in evaluations], training),
        is_compared=bool(training),
        changes=changes([each.main for each in evaluations], before, num_samples, seed),
        galleries=[gallery for gallery in galleries if gallery],
        training_data=[training_data(manifest, 2 * num_samples, seed) for manifest in contents.manifests],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    files = parser.add_argument_group("files")
    files.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="see above")
    files.add_argument("--output", type=Path, required=True, metavar="report.html", help="the page; it is replaced")
    files.add_argument("--summary", type=Path, metavar="summary.json", help="nested numbers, shown at the top")
    hashes_help = "parquet files with a column phash, or folders of them: compares the evaluation pictures with these"
    files.add_argument("--training-hashes", type=Path, nargs="+", default=[], metavar="P", help=hashes_help)
    before_help = "evaluations of the models that fine-tuning began with: shows what has changed since"
    files.add_argument("--before", type=Path, nargs="+", default=[], metavar="DIR", help=before_help)
    ablations_help = "evaluations of runs with and without stage 1, or with and without ITG; one or more seeds of each"
    files.add_argument("--ablations", type=Path, nargs="+", default=[], metavar="DIR", help=ablations_help)
    page = parser.add_argument_group("page")
    page.add_argument("--title", default="Evaluation report", help="default: Evaluation report")
    page.add_argument("--samples", type=int, default=8, metavar="N", help="samples of each kind (default 8)")
    page.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the random choice (default 0)")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"argument --samples: {options.samples}, expected at least 1")
    if not options.folders and not options.ablations:
        parser.error("argument DIR: is missing; give one or more, or --ablations")
    print_settings(options)

    def work() -> None:
        from pipeline.files import check_target, lock_file, open_lock, replace_file

        check_target(options.output)
        check_page(options.output)
        path = options.output.with_name(f".{options.output.name}.lock")
        with open_lock(path) as lock:
            lock_file(lock, path, wait=True)  # of two that begin together, the last to write has seen all scores
            content = report_page(
                classify(options.folders),
                options.title,
                options.summary,
                options.samples,
                options.seed,
                options.training_hashes,
                options.before,
                options.ablations,
            )
            replace_file(options.output, content.encode(errors="replace"))  # a folder name can be invalid Unicode
        print(options.output)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
