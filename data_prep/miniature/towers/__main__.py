"""Trains the miniature's frozen towers from scratch, and saves them as ordinary transformers and timm folders.

The towers are clip, vision (the vision half of clip, for timm), blip, t5, opt and bert. A finished tower with the same
settings is skipped. One process with one thread makes one after another; several can make different towers.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pipeline.command_line import STOPPED, Parser

NAMES = ("clip", "vision", "blip", "t5", "opt", "bert")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    names = options.only or list(NAMES)
    if options.steps_scale <= 0:
        return _fail(f"--steps-scale {options.steps_scale}: must be above 0")
    print(json.dumps({**vars(options), "world": str(options.world), "output": str(options.output), "only": names}))
    signal.signal(signal.SIGTERM, _stop)
    try:
        return _make(options, names) or _finish(options.output)
    except (KeyboardInterrupt, SystemExit):
        return STOPPED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m data_prep.miniature.towers", description=__doc__)
    parser.add_argument(
        "--world", type=Path, required=True, metavar="DIR", help="the drawn world; the captioner learns from its coco/"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder for the towers")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help=f"make only these: {', '.join(NAMES)} (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--steps-scale", type=float, default=1.0, help="factor for the training steps; tests use 0.01 (default: 1)"
    )
    return parser.parse_args(arguments)


def _make(options: argparse.Namespace, names: Sequence[str]) -> int:
    """Make the towers in this process, on one thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    from data_prep.miniature.towers.making import Order, make

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        order = Order(options.world, options.output, options.seed, options.steps_scale)
        for name in names:
            make(name, order)
    except ValueError as error:
        return _fail(str(error))
    return 0


def _finish(output: Path) -> int:
    print(output)
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
