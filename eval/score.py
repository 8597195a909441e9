"""`python -m eval.score vqa|okvqa|gqa|captions|nocaps|retrieval`: score prediction files against official files.

It needs no model and no torch. It writes metrics.json, one row a number:
{"task", "n", "metrics": [{"name", "protocol", "subset", "value", "low", "high"}], "predictions_sha256"}.
Accuracies and recalls are in percent, caption scores as papers print them. low and high are a 95% bootstrap interval
over images. --against OTHER adds "against": rows of paired differences to another prediction file.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.catalogue import TASKS, Kind
from pipeline.command_line import Parser, check_outputs, finish, print_settings
from pipeline.files import check_target, replace_file, sha256_of

if TYPE_CHECKING:
    from eval.scoring.tables import Scored

INPUTS = ("predictions", "annotations", "questions", "against", "spice")  # the flags of files that are read
SCORERS = {task.scored_as: task for task in TASKS.values()}


def compare(options: argparse.Namespace, scored: "Scored") -> dict[str, Any]:
    """The paired differences to --against, with that file's path and digest."""
    if SCORERS[options.task].kind == Kind.RETRIEVAL:
        from eval.scoring.retrieval import check_same_gallery

        check_same_gallery(options.predictions, options.against)
    other = SCORERS[options.task].score(options, options.against)
    return {
        "predictions": str(options.against),
        "sha256": sha256_of(options.against),
        "metrics": scored.differences(other),
    }


def print_overall(metrics: dict[str, Any]) -> None:
    """One line for each number over all samples, then the differences, then the metrics that were not computed."""
    for title, rows in (("", metrics["metrics"]), ("difference ", metrics.get("against", {}).get("metrics", []))):
        for row in rows:
            if row["subset"] == "overall":
                low, high = (f"{row[end]:.2f}" if row[end] is not None else "-" for end in ("low", "high"))
                sign = "+" if title else ""
                print(f"{title}{row['name']} {row['value']:{sign}.2f} [{low}, {high}] {row['protocol']}")
    for name, why in metrics.get("not_computed", {}).items():
        print(f"{name} not computed: {why}")


def _parser() -> Parser:
    parser = Parser(prog="python -m eval.score", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=Parser)
    for name, task in SCORERS.items():
        of_task = tasks.add_parser(name, help=task.predictions)
        read = of_task.add_argument_group("files to read")
        read.add_argument("--predictions", type=Path, required=True, metavar="P", help=task.predictions)
        if task.annotations:
            read.add_argument("--annotations", type=Path, required=True, metavar="A", help=task.annotations)
        if task.has_question_file:
            read.add_argument("--questions", type=Path, metavar="Q", help="official; checked to have the same ids")
        read.add_argument("--against", type=Path, metavar="OTHER", help="other predictions, for paired differences")
        if task.kind == Kind.CAPTIONS:
            how = of_task.add_argument_group("what is scored")
            how.add_argument("--split", help="of a Karpathy dataset_*.json; other files need none")
            how.add_argument("--meteor", action="store_true", help="add METEOR, with pycocoevalcap's jar; needs java")
            how.add_argument("--spice", type=Path, metavar="spice-1.0.jar",
                             help="add SPICE, with your jar and its lib/ beside it; needs Java 8 to 14")  # fmt: skip
        written = of_task.add_argument_group("files to write")
        written.add_argument("--output", type=Path, required=True, metavar="metrics.json", help="all scores")
        written.add_argument("--per-sample", type=Path, metavar="FILE.jsonl", help="each sample's scores")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    print_settings(options)

    def work() -> None:
        inputs = [(f"--{name}", vars(options).get(name)) for name in INPUTS]
        check_outputs([("--output", options.output), ("--per-sample", options.per_sample)], inputs)
        for target in filter(None, (options.output, options.per_sample)):
            check_target(target)
        scored = SCORERS[options.task].score(options, options.predictions)
        metrics = scored.metrics() | {"predictions_sha256": sha256_of(options.predictions)}
        if options.against:
            metrics["against"] = compare(options, scored)
        if options.per_sample:
            replace_file(options.per_sample, "".join(json.dumps(sample) + "\n" for sample in scored.samples))
            print(options.per_sample)
        replace_file(options.output, json.dumps(metrics, indent=1) + "\n")
        print_overall(metrics)
        print(options.output)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
