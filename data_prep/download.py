"""Download the images of a source into raw shards.

The ledger beside each shard says for every row of the table whether it was kept, or for which reason it was dropped.
Finished shards are skipped: run the same command again to continue. With --images ROOT, images are read from this
machine instead. The source `tars`, and parquet tables with a column of pictures, hold the images themselves.
"""

import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.raw.download_flags import parse
from pipeline.command_line import finish, print_settings

if TYPE_CHECKING:
    from pathlib import Path

    from data_prep.raw.plan import DownloadSettings
    from data_prep.tables.evaluation_pictures import EvaluationPictures
    from data_prep.tables.sources import Source

MAX_PIXELS = 50_000_000
"""An image with more pixels is not decoded."""
MAX_BYTES = 20_000_000
"""An image with more bytes is not fetched to its end."""
NORMAL_PART = 0.25
"""Less than this part of the source's expected share of rows means that the network is probably down."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__)
    print_settings(options)

    def work() -> int:
        warnings.filterwarnings("ignore", module="PIL")  # the ledger says what became of odd files
        settings = _settings(options)
        from data_prep.raw.task import download, summary_path

        summary = download(settings)
        print(f"{summary['rows']} rows, {summary['kept']} kept, dropped {summary['dropped_by_reason']}")
        if summary["damaged_captions"]:
            told = (
                f"captions of {summary['damaged_captions']} rows hold \\ufffd, in the place of bytes that are no UTF-8"
            )
            print(
                f"warning: {told}; if the table is in another encoding, convert it, and use a new --output",
                file=sys.stderr,
            )
        if summary["embedded_pictures"] and not settings.joins:
            print("note: rows of one picture in such a table are joined with --captions human alone; "
                  "data_prep.duplicates would keep one of them, and its captions alone")  # fmt: skip
        if summary["joined_rows"]:
            print(f"{summary['joined_rows']} more rows had a picture of these; their captions are with it")
        if summary["questions"] or summary["dropped_questions_by_reason"]:
            print(f"{summary['questions']} questions kept, dropped {summary['dropped_questions_by_reason']}")
        if summary["failed_in_passing"]:
            print(f"{summary['failed_in_passing']} of them failed temporarily; --retry-failed fetches them again")
        print(summary_path(settings))
        return 0

    return finish(work)


def _settings(options: Namespace) -> "DownloadSettings":
    from data_prep.raw.plan import DownloadSettings
    from data_prep.raw.stored_image import ImageLimits
    from data_prep.tables.caption_filter import CaptionRules
    from data_prep.tables.conditions import parse_conditions
    from data_prep.tables.sources import QUESTIONS, WITH_COLUMNS, choose_source
    from data_prep.web.fetching import FetchSettings

    source = choose_source(
        options.source,
        url_column=options.url_column,
        caption_column=options.caption_column,
        captions=options.captions,
        own=options.sources,
    )
    images = _images(options, source)
    rules = CaptionRules(options.min_words, options.max_words, tuple(sorted(options.language)))
    if source.format in QUESTIONS and rules != CaptionRules():
        raise ValueError(
            f"source {source.name!r}: has no captions to filter; leave out --min-words, --max-words and --language"
        )
    conditions = parse_conditions(options.keep_where)
    if conditions and source.format not in WITH_COLUMNS:
        raise ValueError(f"--keep-where {conditions[0]}: source {source.name!r} has no columns; leave it out")
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
        tuple(options.input),
        options.output,
        options.task_index,
        options.task_count,
        options.samples_per_shard,
        images,
        options.split,
        ImageLimits(options.min_side_px, options.max_side_px, MAX_PIXELS, options.max_aspect),
        rules,
        fetching,
        options.retry_failed,
        0.0 if options.retry_failed else _least_yield(options.least_yield, source),
        tuple(options.annotations),
        _evaluation_pictures(options, source),
        conditions,
    )


def _images(options: Namespace, source: "Source") -> "Path | None":
    """The folder of local pictures; None for the web, and for tars, which hold their pictures."""
    images: Path | None = options.images
    if source.format == "tars":
        if images is not None:
            raise ValueError(f"--images {images}: source {source.name!r} has its pictures in its tars; leave it out")
        return None
    if source.format == "imagefolder":
        table: Path = options.input[0]
        images = images or (table.parent if table.is_file() else table)
    if images is None and source.format != "table":
        raise ValueError(f"source {source.name!r}: its annotations name files; give their folder with --images")
    if images is not None and not images.is_dir():
        raise ValueError(f"--images {images}: is not a folder")
    return images


def _evaluation_pictures(options: Namespace, source: "Source") -> "EvaluationPictures | None":
    """The pictures of --not-in, or None without it."""
    from data_prep.tables.evaluation_pictures import EvaluationPictures, read_coco_ids, read_evaluation_sets
    from data_prep.tables.sources import NUMBERED

    of_visual_genome = source.format in ("visual_genome", "visual_genome_qa")
    if options.image_data and not (options.not_in and of_visual_genome):
        raise ValueError(
            f"--image-data {options.image_data}: is for Visual Genome with --not-in; add --not-in, or leave it out"
        )
    if not options.not_in:
        return None
    if source.format not in NUMBERED:
        raise ValueError(f"--not-in: rows of source {source.name!r} have no COCO numbers; use data_prep.duplicates")
    if of_visual_genome and not options.image_data:
        raise ValueError("--not-in: Visual Genome needs --image-data image_data.json, which has the COCO numbers")
    coco_ids = read_coco_ids(options.image_data) if options.image_data else None
    return EvaluationPictures(read_evaluation_sets(options.not_in), coco_ids, options.image_data)


def _least_yield(given: float | None, source: "Source") -> float:
    """The share of rows that must arrive: as given, or NORMAL_PART of the source's expected share."""
    if given is not None and not 0 <= given <= 1:
        raise ValueError(f"--least-yield {given:g}: must be from 0 to 1")
    return NORMAL_PART * source.expected_yield if given is None else given


if __name__ == "__main__":
    sys.exit(main())
