"""Defines the flags of `data_prep.download`, in groups."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import Parser

USER_AGENT = "blip2-pretraining/0.1 (research crawler of captioned images; honours X-Robots-Tag: noai, noml)"
SMALLEST = {
    "min_side_px": 1, "max_side_px": 16, "samples_per_shard": 1, "task_count": 1, "retries": 0, "timeout_s": 0.1,
    "deadline_s": 0.1, "processes": 1, "threads": 1, "task_index": 0, "max_aspect": 1, "min_words": 0,
    "connections_per_host": 0,
}  # fmt: skip
"""Flag -> its smallest value."""


def parse(arguments: Sequence[str] | None, description: str | None = None) -> Namespace:
    """The settings of a run. Wrong usage ends the process with exit code 2."""
    parser = Parser(prog="python -m data_prep.download", description=description)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a name in data_prep/sources.yaml; `table` for a table of your own, `tars` for a folder of tars",
    )
    parser.add_argument("tables", metavar="TABLE", type=Path, nargs="*", default=[], help="the same as --input TABLE")
    _add_input_flags(parser)
    _add_filter_flags(parser)
    _add_network_flags(parser)
    options = parser.parse_intermixed_args(arguments)
    options.input += options.tables
    del options.tables
    if not options.input:
        parser.error("--input: is missing; name a table, an annotation file or a folder of tars")
    for name, smallest in SMALLEST.items():
        if (value := getattr(options, name)) is not None and value < smallest:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least {smallest}")
    if options.task_index >= options.task_count:
        parser.error(f"--task-index {options.task_index}: must be below --task-count {options.task_count}")
    return options


def _add_input_flags(parser: Parser) -> None:
    group = parser.add_argument_group("input and output")
    group.add_argument(
        "--input",
        metavar="TABLE",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="a table or annotation file, or a folder of tables or tars; of questions, one or more files",
    )
    group.add_argument(
        "--annotations", metavar="FILE", type=Path, nargs="+", default=[], help="the answers of VQAv2's question files"
    )
    group.add_argument("--output", metavar="DIR", type=Path, required=True, help="the folder for shards and ledgers")
    group.add_argument(
        "--images", metavar="ROOT", type=Path, help="read image files below this folder instead of the web"
    )
    group.add_argument(
        "--sources", metavar="FILE", type=Path, help="more sources, in a file as data_prep/sources.yaml is"
    )
    group.add_argument("--url-column", metavar="NAME", help="the column of URLs or files (default: the source's)")
    group.add_argument(
        *("--caption-column", "--caption-key"),
        metavar="NAME",
        help="the column of captions (default: the source's); of tars, the field of KEY.json that has the caption "
        "(default: KEY.txt, else the field caption)",
    )
    group.add_argument(
        "--captions", choices=("human", "web"), help="human captions skip CapFilt (default: the source's kind)"
    )
    group.add_argument("--split", help="the split of a Karpathy JSON (default: train, which includes restval)")
    leakage = parser.add_argument_group("evaluation pictures", "they are dropped by COCO's numbers of pictures")
    leakage.add_argument(
        "--not-in",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="evaluation sets: Karpathy's JSON (its val and test), question files of VQAv2, or JSON lists of numbers",
    )
    leakage.add_argument(
        "--image-data", metavar="FILE", type=Path, help="image_data.json, which has COCO's numbers for Visual Genome"
    )
    tasks = parser.add_argument_group("tasks", "several tasks, such as those of a job array, share a table")
    tasks.add_argument(
        "--samples-per-shard", metavar="N", type=int, default=10_000, help="rows of a shard (default: %(default)s)"
    )
    tasks.add_argument(
        "--task-index", metavar="I", type=int, default=0, help="number of this task, from 0 (default: %(default)s)"
    )
    tasks.add_argument(
        "--task-count", metavar="N", type=int, default=1, help="number of tasks that share the table (default: 1)"
    )


def _add_filter_flags(parser: Parser) -> None:
    group = parser.add_argument_group("filters", "each has a drop reason of its own in the ledger")
    group.add_argument(
        "--keep-where",
        metavar="CONDITION",
        nargs="+",
        default=[],
        help='drop rows of a table that fail a condition on a column, as in "similarity>=0.3" "NSFW==UNLIKELY"',
    )
    group.add_argument(
        "--min-words", metavar="N", type=int, default=0, help="drop captions with fewer words (default: %(default)s)"
    )
    group.add_argument("--max-words", metavar="N", type=int, help="drop captions with more words (default: no limit)")
    group.add_argument(
        "--language",
        metavar="CODE",
        nargs="+",
        default=[],
        help="drop captions that are very probably in another language than these, such as en de (default: keep all)",
    )
    group.add_argument(
        "--min-side-px",
        metavar="N",
        type=int,
        default=32,
        help="drop images whose shorter side has fewer pixels (default: %(default)s)",
    )
    group.add_argument(
        "--max-aspect",
        metavar="RATIO",
        type=float,
        help="drop images whose longer side is more than RATIO times the shorter (default: no limit)",
    )
    pictures = parser.add_argument_group("stored pictures")
    pictures.add_argument(
        "--max-side-px",
        metavar="N",
        type=int,
        default=256,
        help="shrink images until the shorter side has at most N pixels (default: %(default)s)",
    )


def _add_network_flags(parser: Parser) -> None:
    group = parser.add_argument_group("time limits and retries")
    for name, default, text in (
        ("timeout-s", 10.0, "seconds for one socket operation"),
        ("deadline-s", 60.0, "seconds for one image with all its redirects"),
        ("backoff-s", 2.0, "seconds before the first retry; each later wait is twice as long"),
    ):
        group.add_argument(
            f"--{name}", metavar="SECONDS", type=float, default=default, help=f"{text} (default: %(default)s)"
        )
    group.add_argument(
        "--retries", metavar="N", type=int, default=2, help="retries of temporary failures (default: %(default)s)"
    )
    group.add_argument(
        "--retry-failed", action="store_true", help="fetch the temporary failures of finished shards again"
    )
    group.add_argument(
        "--least-yield",
        metavar="SHARE",
        type=float,
        help="stop when a smaller share of about 20,000 rows arrives, because the network is probably down; "
        "from 0 to 1 (default: a quarter of the source's expected share)",
    )
    load = parser.add_argument_group("network")
    load.add_argument(
        "--processes",
        metavar="N",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that fetch (default: the number of CPUs)",
    )
    load.add_argument(
        "--threads", metavar="N", type=int, default=32, help="connections of each process (default: %(default)s)"
    )
    load.add_argument(
        "--connections-per-host",
        metavar="N",
        type=int,
        default=16,
        help="connections of this task to one host at a time, shared by its processes, at least one for each; "
        "0: no limit (default: %(default)s)",
    )
    load.add_argument("--robots", action="store_true", help="skip what the robots.txt of a host forbids")
    load.add_argument(
        "--user-agent",
        metavar="TEXT",
        default=USER_AGENT,
        help="how requests name this downloader (default: %(default)s)",
    )
    load.add_argument(
        "--distributor",
        choices=("multiprocessing", "pyspark"),
        default="multiprocessing",
        help="how img2dataset starts its processes (default: %(default)s)",
    )
    load.add_argument(
        "--spark-master", metavar="URL", help="for pyspark (default: a local Spark with one core for each process)"
    )
    load.add_argument("--allow-loopback", action="store_true", help="allow 127.0.0.1, for tests and the miniature web")
