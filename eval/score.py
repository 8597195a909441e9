"""`python -m eval.score vqa|captions|nocaps|retrieval`: anyone's predictions against official annotation files.

Needs no model and no torch. Writes metrics.json: {"task", "n", "metrics": [{"name", "protocol", "subset", "value",
"low", "high"}]}: accuracies and recalls in percent, caption scores as papers print them, 95% intervals by bootstrap
over images.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.command_line import Parser, finish, print_settings

PREDICTIONS_HELP = {
    "vqa": "JSON list of {question_id, answer}",
    "captions": "JSON list of {image_id, caption}",
    "nocaps": "JSON list of {image_id, caption}",
    "retrieval": ".npz with itc [images, texts], text_image [texts], optionally itm (NaN where not scored) and k_test",
}


def score(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of metrics.json, and a line a sample. Raises ValueError in one line for files that do not fit."""
    if options.task == "vqa":
        from eval.scoring.vqa import score_vqa

        return score_vqa(options.predictions, options.annotations, options.questions)
    if options.task == "retrieval":
        from eval.scoring.retrieval import score_retrieval

        return score_retrieval(options.predictions)
    from eval.scoring.captions import score_captions

    return score_captions(options.task, options.predictions, options.annotations, options.split)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _parser() -> Parser:
    parser = Parser(prog="python -m eval.score", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=Parser)
    for task, format_help in PREDICTIONS_HELP.items():
        of_task = tasks.add_parser(task, help=format_help)
        of_task.add_argument("--predictions", type=Path, required=True, metavar="P", help=format_help)
        if task != "retrieval":
            of_task.add_argument("--annotations", type=Path, required=True, metavar="A", help="as published")
        if task == "vqa":
            of_task.add_argument("--questions", type=Path, metavar="Q", help="checked to hold the same ids")
        if task in ("captions", "nocaps"):
            of_task.add_argument("--split", help="of a Karpathy dataset_*.json; COCO-format files need none")
        of_task.add_argument("--output", type=Path, required=True, metavar="metrics.json")
        of_task.add_argument("--per-sample", type=Path, metavar="FILE.jsonl", help="write each sample's scores there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    print_settings(options)

    def work() -> None:
        metrics, samples = score(options)
        if options.per_sample:
            write_whole(options.per_sample, "".join(json.dumps(sample) + "\n" for sample in samples))
            print(options.per_sample)
        write_whole(options.output, json.dumps(metrics, indent=1) + "\n")
        for row in metrics["metrics"]:
            if row["subset"] == "overall":
                print(f"{row['name']} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] {row['protocol']}")
        print(options.output)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
