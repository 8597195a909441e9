"""Download a source's images into raw shards: `python -m data_prep.download SOURCE --input TABLE --output DIR`.

Every row of the table ends as kept or dropped for one named reason, in a ledger beside its shard. Finished shards are
skipped, so that the same command goes on where it was stopped. With --images ROOT, images are read from this machine.
"""

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, print_settings

if TYPE_CHECKING:
    from data_prep.raw.task import DownloadSettings
    from data_prep.tables.sources import Source

USER_AGENT = "blip2-pretraining/0.1 (research crawler of captioned images; honours X-Robots-Tag: noai)"
MAX_PIXELS = 50_000_000
MAX_BYTES = 20_000_000
NORMAL_PART = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    least = {"min_side_px": 1, "max_side_px": 16, "samples_per_shard": 1, "task_count": 1, "retries": 0,
             "timeout_s": 0.1, "deadline_s": 0.1, "processes": 1, "threads": 1, "task_index": 0, "max_aspect": 1,
             "min_words": 0,
             "connections_per_host": 0}  # fmt: skip
    for name, smallest in least.items():
        if (value := getattr(options, name)) is not None and value < smallest:
            parser.error(f"--{name.replace('_', '-')} {value}: at least {smallest}")
    if options.task_index >= options.task_count:
        parser.error(f"--task-index {options.task_index}: has to be below --task-count {options.task_count}")
    print_settings(options)

    def work() -> int:
        warnings.filterwarnings("ignore", module="PIL")  # its remarks on odd files; the ledger says what became of them
        settings = _settings(options)
        from data_prep.raw.task import download, summary_path

        summary = download(settings)
        print(f"{summary['rows']} rows, {summary['kept']} kept, dropped {summary['dropped_by_reason']}")
        if summary["failed_in_passing"]:
            print(f"{summary['failed_in_passing']} of them failed in passing: --retry-failed fetches them anew")
        print(summary_path(settings))
        return 0

    return finish(work)


def _parser() -> Parser:
    parser = Parser(prog="python -m data_prep.download", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="an entry of sources.yaml; `table` for a table of your own")
    parser.add_argument("--input", metavar="TABLE", type=Path, required=True, help="a table, or a folder of tables")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True)
    parser.add_argument("--task-index", type=int, default=0, help="this task of an array, from 0")
    parser.add_argument("--task-count", type=int, default=1)
    parser.add_argument("--url-column", metavar="NAME", help="instead of the source's own")
    parser.add_argument("--caption-column", metavar="NAME", help="instead of the source's own")
    parser.add_argument("--captions", choices=("human", "web"), help="human ones skip caption filtering")
    parser.add_argument("--images", metavar="ROOT", type=Path, help="the rows name files below this folder")
    parser.add_argument("--split", help="of a Karpathy JSON (train, with restval)")
    parser.add_argument("--min-side-px", type=int, default=32, help="drop images with a shorter side below this")
    parser.add_argument("--max-side-px", type=int, default=256, help="shrink the shorter side to this")
    parser.add_argument(
        "--max-aspect", type=float, help="drop images whose longer side is more of the shorter than this"
    )
    parser.add_argument(
        "--min-words", type=int, default=0, help="drop captions of fewer words, and rows without another"
    )
    parser.add_argument("--max-words", type=int, help="drop captions of more words")
    parser.add_argument(
        "--language", metavar="CODE", nargs="+", default=[], help="drop captions that are surely in other languages"
    )
    parser.add_argument("--samples-per-shard", type=int, default=10_000, help="rows a shard")
    parser.add_argument("--timeout-s", type=float, default=10.0, help="of one socket operation")
    parser.add_argument("--deadline-s", type=float, default=60.0, help="of an image with its redirects")
    parser.add_argument("--retries", type=int, default=2, help="rounds over the rows that failed in passing")
    parser.add_argument("--backoff-s", type=float, default=2.0, help="wait before the first retry; then twice as long")
    parser.add_argument(
        "--retry-failed", action="store_true", help="also fetch anew what failed in passing in finished shards"
    )
    parser.add_argument(
        "--least-yield",
        metavar="SHARE",
        type=float,
        help="stop where less arrives of some 20,000 rows, for passing reasons; a quarter of what the source expects",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=32, help="connections of each process")
    parser.add_argument("--distributor", choices=("multiprocessing", "pyspark"), default="multiprocessing")
    parser.add_argument("--spark-master", metavar="URL", help="instead of a local Spark of as many cores as processes")
    parser.add_argument(
        "--connections-per-host",
        metavar="N",
        type=int,
        default=16,
        help="at a time, shared out over the processes of a task, of which each has one at least; 0: any number",
    )
    parser.add_argument("--robots", action="store_true", help="leave out what a host's robots.txt forbids")
    parser.add_argument("--user-agent", default=USER_AGENT)
    parser.add_argument("--allow-loopback", action="store_true", help="admit 127.0.0.1 (tests, the miniature web)")
    return parser


def _settings(options: Namespace) -> "DownloadSettings":
    from data_prep.raw.stored_image import ImageLimits
    from data_prep.raw.task import DownloadSettings
    from data_prep.tables.caption_filter import CaptionRules
    from data_prep.tables.sources import choose_source
    from data_prep.web.fetching import FetchSettings

    source = choose_source(
        options.source,
        url_column=options.url_column,
        caption_column=options.caption_column,
        captions=options.captions,
    )
    if source.format != "table" and options.images is None:
        raise ValueError(f"source {source.name!r}: its annotations name files; say with --images where they lie")
    if options.images is not None and not options.images.is_dir():
        raise ValueError(f"--images {options.images}: no such folder")
    fetching = FetchSettings(
        options.timeout_s,
        options.deadline_s,
        options.retries,
        options.backoff_s,
        options.processes,
        options.threads,
        MAX_BYTES,
        options.user_agent,
        options.allow_loopback,
        options.distributor,
        options.spark_master,
        options.connections_per_host,
        options.robots,
    )
    return DownloadSettings(
        source,
        options.input,
        options.output,
        options.task_index,
        options.task_count,
        options.samples_per_shard,
        options.images,
        options.split,
        ImageLimits(options.min_side_px, options.max_side_px, MAX_PIXELS, options.max_aspect),
        CaptionRules(options.min_words, options.max_words, tuple(sorted(options.language))),
        fetching,
        options.retry_failed,
        0.0 if options.retry_failed else _least_yield(options.least_yield, source),
    )


def _least_yield(given: float | None, source: "Source") -> float:
    """A share of the rows tried: as given, or the part of the source's expected yield that is still normal."""
    if given is not None and not 0 <= given <= 1:
        raise ValueError(f"--least-yield {given:g}: has to lie in 0 .. 1")
    return NORMAL_PART * source.expected_yield if given is None else given


if __name__ == "__main__":
    sys.exit(main())
