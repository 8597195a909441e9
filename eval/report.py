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

from pipeline.command_line import Parser, finish, print_settings

PAGE_START = b"<!doctype html"


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


def render(
    contents: Contents, title: str, summary: Path | None, each: int, seed: int, training: Sequence[Path] = ()
) -> str:
    """The page."""
    from eval.reporting.checkpoints import checkpoints_section
    from eval.reporting.evaluations import read_evaluation, with_baselines
    from eval.reporting.galleries import gallery_section
    from eval.reporting.manifests import manifest_section
    from eval.reporting.overlap import overlap_section
    from eval.reporting.scores import scores_section
    from eval.reporting.summary import summary_section
    from eval.reporting.training_curves import curves_section
    from pipeline.pages.page import page

    compared = with_baselines([read_evaluation(folder) for folder in contents.evaluations])
    sections = [summary_section(summary) if summary else "", scores_section(compared), curves_section(contents.runs)]
    sections.insert(2, checkpoints_section(contents.over_steps))
    sections.append(overlap_section([each_compared.main for each_compared in compared], training))
    sections += [gallery_section(each_compared, each, seed) for each_compared in compared]
    sections += [manifest_section(manifest, 2 * each, seed) for manifest in contents.manifests]
    return page(title, sections)


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
        from pipeline.files import replace_file

        check_page(options.output)
        content = render(
            classify(options.folders),
            options.title,
            options.summary,
            options.samples,
            options.seed,
            options.training_hashes,
        )
        replace_file(options.output, content.encode(errors="replace"))  # names of folders may be no Unicode
        print(options.output)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
