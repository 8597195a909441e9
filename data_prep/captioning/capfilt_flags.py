"""Defines the flags of `data_prep.capfilt`, in groups."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path

from data_prep.captioning.capfilt_plan import Selection
from data_prep.captioning.captioner import SamplingSettings
from pipeline.command_line import Parser, positive


def parse(arguments: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The settings of a run. Wrong usage ends the process with exit code 2."""
    parser = Parser(prog="python -m data_prep.capfilt", description=description)
    _add_files_and_models(parser)
    _add_sampling(parser)
    _add_selection(parser)
    _add_work(parser)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    if not options.reselect and not (options.captioner and options.ranker):
        parser.error("--captioner and --ranker: both are required, unless --reselect is given")
    if not 0 < options.lease_s < math.inf:
        parser.error(f"--lease-s {options.lease_s}: must be a finite number above 0")
    return options


def _add_files_and_models(parser: Parser) -> None:
    files = parser.add_argument_group("input and output")
    files.add_argument(
        "--input", metavar="DIR", type=Path, required=True, help="raw shards, the output folder of data_prep.download"
    )
    files.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="the folder for captioned shards; workers may share it",
    )
    files.add_argument("--drops", metavar="DROPS", type=Path, help="leave out what data_prep.duplicates listed there")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--captioner", metavar="W", type=Path, help="a BlipForConditionalGeneration: a transformers folder or a hub id"
    )
    models.add_argument("--ranker", metavar="W", type=Path, help="a CLIPModel: a transformers folder or a hub id")
    models.add_argument(
        "--device", default="auto", help="cpu, cuda (the GPU with this rank's number), cuda:N or auto (default: auto)"
    )


def _add_sampling(parser: Parser) -> None:
    default = SamplingSettings()
    group = parser.add_argument_group("synthetic captions", "the defaults are those of BLIP and BLIP-2")
    group.add_argument(
        "--num-captions",
        metavar="N",
        type=positive,
        default=default.num_captions,
        help="synthetic captions for each image (default: %(default)s)",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", default=default.prompt, help="the start of each caption (default: '%(default)s')"
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=default.top_p,
        help="sample from the most likely tokens that together have this probability (default: %(default)s)",
    )
    for end in ("min", "max"):
        group.add_argument(
            f"--{end}-length",
            metavar="N",
            type=int,
            default=getattr(default, f"{end}_length"),
            help=f"{end}imum length in tokens, which counts start token and prompt (default: %(default)s)",
        )
    group.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=float,
        default=default.repetition_penalty,
        help="divides the logits of repeated tokens; 1: no penalty (default: %(default)s)",
    )
    group.add_argument("--seed", metavar="N", type=int, default=default.seed, help="of sampling (default: %(default)s)")


def _add_selection(parser: Parser) -> None:
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--top-k",
        metavar="K",
        type=positive,
        default=Selection.top_k,
        help="captions to keep for each image (default: %(default)s)",
    )
    group.add_argument(
        "--min-score", metavar="X", type=float, help="drop captions with a lower cosine, -1 to 1 (default: no limit)"
    )
    group.add_argument(
        "--reselect", action="store_true", help="only select again, from the side tables and without the models"
    )


def _add_work(parser: Parser) -> None:
    group = parser.add_argument_group("work", "several tasks, such as those of a job array, share the shards")
    group.add_argument(
        "--task-index", metavar="I", type=int, default=0, help="number of this task, from 0 (default: %(default)s)"
    )
    group.add_argument(
        "--task-count", metavar="N", type=positive, default=1, help="number of tasks (default: %(default)s)"
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        type=positive,
        default=32,
        help="images captioned at a time, at most 64; it does not change the result (default: %(default)s)",
    )
    group.add_argument(
        "--decode-threads",
        metavar="N",
        type=positive,
        default=min(8, len(os.sched_getaffinity(0))),
        help="threads that decode pictures (default: the number of CPUs, at most 8)",
    )
    group.add_argument(
        "--lease-s",
        metavar="SECONDS",
        type=float,
        default=120.0,
        help="other workers take over a shard after this many seconds without a heartbeat (default: %(default)s)",
    )
