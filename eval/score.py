"""`python -m eval.score vqa|okvqa|gqa|captions|nocaps|retrieval`: anyone's predictions against official files.

Needs no model and no torch. Writes metrics.json: {"task", "n", "metrics": [{"name", "protocol", "subset", "value",
"low", "high"}], "predictions_sha256"}: accuracies and recalls in percent, caption scores as papers print them, 95%
intervals by bootstrap over images. --against OTHER adds "against": the paired differences to another prediction file,
in rows like those.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, check_outputs, finish, print_settings
from pipeline.files import check_target, replace_file, sha256_of

if TYPE_CHECKING:
    from eval.scoring.tables import Scored

INPUTS = ("predictions", "annotations", "questions", "against", "spice")  # the flags of files that are read
PREDICTIONS_HELP = {
    "vqa": "JSON list of {question_id, answer}",
    "okvqa": "JSON list of {question_id, answer}",
    "gqa": "JSON list of {question_id, answer}, or GQA's {questionId, prediction}",
    "captions": "JSON list of {image_id, caption}",
    "nocaps": "JSON list of {image_id, caption}",
    "retrieval": ".npz with itc [images, texts], text_image [texts], optionally itm (NaN where not scored) and k_test",
}


def score(options: argparse.Namespace, predictions: Path) -> "Scored":
    """One prediction file's scores. Raises ValueError in one line for files that do not fit."""
    if options.task in ("vqa", "okvqa"):
        from eval.scoring.vqa import score_vqa

        return score_vqa(predictions, options.annotations, options.questions, options.task)
    if options.task == "gqa":
        from eval.scoring.gqa import score_gqa

        return score_gqa(predictions, options.annotations)
    if options.task == "retrieval":
        from eval.scoring.retrieval import score_retrieval

        return score_retrieval(predictions)
    from eval.scoring.captions import OutsideSteps, score_captions

    outside = OutsideSteps(options.meteor, options.spice)
    return score_captions(options.task, predictions, options.annotations, options.split, outside)


def compare(options: argparse.Namespace, scored: "Scored") -> dict[str, Any]:
    """The paired differences to --against, and what it was."""
    if options.task == "retrieval":
        from eval.scoring.retrieval import check_same_gallery

        check_same_gallery(options.predictions, options.against)
    other = score(options, options.against)
    return {
        "predictions": str(options.against),
        "sha256": sha256_of(options.against),
        "metrics": scored.differences(other),
    }


def print_overall(metrics: dict[str, Any]) -> None:
    """A line a number over all samples, then the differences, then what was not computed."""
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
    for task, format_help in PREDICTIONS_HELP.items():
        of_task = tasks.add_parser(task, help=format_help)
        of_task.add_argument("--predictions", type=Path, required=True, metavar="P", help=format_help)
        if task != "retrieval":
            of_task.add_argument("--annotations", type=Path, required=True, metavar="A", help="as published")
        if task in ("vqa", "okvqa"):
            of_task.add_argument("--questions", type=Path, metavar="Q", help="checked to hold the same ids")
        if task in ("captions", "nocaps"):
            of_task.add_argument("--split", help="of a Karpathy dataset_*.json; other files need none")
            of_task.add_argument("--meteor", action="store_true", help="by pycocoevalcap's jar; needs java")
            of_task.add_argument("--spice", type=Path, metavar="spice-1.0.jar", help="yours, with its lib/ beside it")
        of_task.add_argument("--against", type=Path, metavar="OTHER", help="predictions to compare with, in pairs")
        of_task.add_argument("--output", type=Path, required=True, metavar="metrics.json")
        of_task.add_argument("--per-sample", type=Path, metavar="FILE.jsonl", help="write each sample's scores there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    print_settings(options)

    def work() -> None:
        inputs = [(f"--{name}", vars(options).get(name)) for name in INPUTS]
        check_outputs([("--output", options.output), ("--per-sample", options.per_sample)], inputs)
        for target in filter(None, (options.output, options.per_sample)):
            check_target(target)
        scored = score(options, options.predictions)
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
