"""`python -m pipeline.match --weights W --image FILE... --text TEXT...`: how pictures and texts fit, from stage 1.

A JSON line a pair: `itc` is the cosine, `itm` the probability that they belong together. `--search TEXT FOLDER` prints
the folder's best pictures: ITC finds candidates among all, ITM ranks them, as evaluation does,
by `rerank`. A picture that cannot be used is left out with a line on stderr, and the exit code is 1.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, finish, positive
from pipeline.files import check_target
from pipeline.inputs import Faults, add_pictures, add_weights, decoded, load_weights, named_pictures, write_lines

if TYPE_CHECKING:
    from pipeline.trained_model import Model


def pairs(model: "Model", options: argparse.Namespace, faults: Faults) -> Iterator[dict[str, Any]]:
    """A line for each picture with each text."""
    texts = options.text
    wanted = named_pictures(options.image)
    for some, pixels in decoded(wanted, len(wanted), model.image_size_px, options, faults):
        scores = model.match(pixels, texts)
        for each, itc_T, itm_T in zip(some, scores.itc.tolist(), scores.itm.tolist(), strict=True):
            for text, itc, itm in zip(texts, itc_T, itm_T, strict=True):
                yield {"image": each.image, "text": text, "itc": round(itc, 6), "itm": round(itm, 6)}


def search(model: "Model", options: argparse.Namespace, faults: Faults) -> Iterator[dict[str, Any]]:
    """A line for each of the best pictures, best first. A picture is a number in memory until it is a candidate."""
    text, folder = options.search
    text_E = model.embed(text=text)
    itc: dict[str, float] = {}
    wanted = named_pictures([folder])
    for some, pixels in decoded(wanted, len(wanted), model.image_size_px, options, faults):
        cosines = (model.embed(pixels) @ text_E).max(axis=1).tolist()
        itc.update(zip((each.image for each in some), cosines, strict=True))
    candidates = sorted(itc, key=lambda image: -itc[image])[: options.best]
    if not candidates:
        return
    scores = model.match(candidates, text)
    for place in (-scores.rerank).argsort(kind="stable"):
        yield {"image": candidates[place]} | {
            name: round(float(column[place]), 6) for name, column in zip(scores._fields, scores, strict=True)
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m pipeline.match", description=__doc__)
    add_weights(parser, 1)
    add_pictures(parser, parser)
    parser.add_argument(
        "--text", nargs="+", default=[], metavar="TEXT", help="texts; each is matched with each picture"
    )
    parser.add_argument(
        "--search", nargs=2, metavar=("TEXT", "FOLDER"), help="the pictures of a folder that fit a text"
    )
    parser.add_argument("--best", type=positive, default=16, metavar="K", help="of --search: candidates; default: 16")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the lines to this file; default: print them")
    options = parser.parse_args(arguments)
    asked = (options.search is not None, bool(options.image), bool(options.text))
    if asked not in ((True, False, False), (False, True, True)):
        parser.error("argument --search: give it alone, or --image with --text")

    def work() -> int:
        if options.output:
            check_target(options.output)
        model, faults = load_weights(options, 1), Faults()
        found = search if options.search else pairs
        write_lines(found(model, options, faults), options.output)
        return faults.exit_code()

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
