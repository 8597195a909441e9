"""What commands that use a trained model read: weights, and pictures from files, folders, URLs and JSON lines.

A picture that cannot be used is one line on stderr, and the others go on.
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, positive, printable
from pipeline.files import check_line, parse_json, read_lines, replacing
from pipeline.progress_line import ProgressLine
from pipeline.web.picture import is_url

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.trained_model import Model

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})  # of pictures in a folder
LOADING_THREADS = 4
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Wanted:
    """One picture, and what to do with it. `fields` are shown beside the result."""

    image: str
    others: tuple[str, ...] = ()  # pictures after it, of one prompt with a mark <image> for each
    fields: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    question: str | None = None
    fault: ValueError | None = None  # why it cannot be used, where that is known before it is read


class Faults:
    """Counts what could not be used, and says it."""

    def __init__(self) -> None:
        self.seen = self.count = 0

    def add(self, message: object) -> None:
        self.count += 1
        print(f"left out: {printable(str(message))}", file=sys.stderr, flush=True)

    def exit_code(self) -> int:
        """1 after any fault, with the count on stderr."""
        if self.count:
            verb = "was" if self.count == 1 else "were"
            print(f"{self.count} of {self.seen} {verb} left out; see the lines above", file=sys.stderr)
        return int(self.count > 0)


def add_weights(parser: Parser, stage: int | str) -> None:
    """The flags that name a model."""
    model = parser.add_argument_group("model")
    model.add_argument("--weights", type=Path, required=True, metavar="W",
                       help=f"of stage {stage}: run, checkpoint, LAVIS' .pth, transformers' folder or id")  # fmt: skip
    model.add_argument("--recipe", type=Path, help="names towers and sizes; for LAVIS' and transformers' weights")
    model.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        help="edits of --recipe; of a run: new places of its towers, language.precision",
    )


def add_pictures(parser: Parser, group: Any) -> None:
    """The flags that name pictures, and how they are read."""
    group.add_argument("--image", nargs="+", default=[], metavar="FILE", help="pictures, folders of pictures, or URLs")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="pictures at a time; default: 32")
    parser.add_argument("--allow-loopback", action="store_true", help="fetch from 127.0.0.1, too; for tests")


def load_weights(options: argparse.Namespace, stage: int | None) -> "Model":
    """The model that the flags name. Raises ValueError in one line, also for another stage than a given one."""
    from pipeline.trained_model import load

    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    model = load(options.weights, options.recipe, options.set)
    if stage is not None and model.stage != stage:
        raise ValueError(
            f"--weights {options.weights}: are of stage {model.stage}; this needs weights of stage {stage}"
        )
    return model


def named_pictures(names: Iterable[str]) -> list[Wanted]:
    """The files and URLs, and all pictures below the folders, sorted."""
    return list(_named(names))


def _named(names: Iterable[str]) -> Iterator[Wanted]:
    for name in names:
        path = Path(name)
        if not is_url(name) and path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
            yield from (Wanted(str(each)) for each in found)
            if not found:
                yield Wanted(name, fault=ValueError(f"{name}: is a folder without pictures; name another"))
        else:
            yield Wanted(name)


def listed_pictures(path: Path) -> Iterator[Wanted]:
    """The lines of a file: {"image": FILE}, and "prompt" or "question" where it has one. Other fields are shown again.

    {"images": [FILE, ...]} are the pictures of one prompt. FILE may be a URL. A relative FILE begins at the folder of
    `path`. A prompt beside a question has {} in its place.
    """
    for number, line in enumerate(read_lines(path), start=1):
        place = f"{path}:{number}"
        try:
            if line.strip():
                yield _of_line(line, path.parent)
        except ValueError as error:
            yield Wanted(place, fault=ValueError(f"{place}: {error}"))


def count_lines(path: Path) -> int:
    """How many pictures `listed_pictures` finds, at most."""
    return sum(1 for line in read_lines(path) if line.strip())


def _of_line(line: bytes, folder: Path) -> Wanted:
    """Raises ValueError for what is no such line."""
    from pipeline.models.marked_text import MARK, pieces_of

    check_line(line)
    found = parse_json(line)
    if not isinstance(found, dict) or ("image" in found) == ("images" in found):
        raise ValueError('has no image; write {"image": FILE}, or {"images": [FILE, ...]} for several of one prompt')
    names = found.get("images", [found.get("image")])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"image {names!r:.80} is not the name of a file, or a list of such; write names")
    for name in ("prompt", "question"):
        if not isinstance(found.get(name, ""), str):
            raise ValueError(f"{name} {found[name]!r:.80} is not a text; write a text, or leave it out")
    prompt, question = found.get("prompt"), found.get("question")
    if prompt is not None and question is not None and prompt.count("{}") != 1:
        raise ValueError(f"prompt {prompt!r:.80} needs one {{}} where the question goes")
    if MARK in (question or ""):
        raise ValueError(f"question {question!r:.80} has a mark {MARK}; marks of pictures stand in the prompt")
    if len(names) > 1 or prompt is not None:
        pieces_of(prompt or "", len(names))
    first, *others = (name if is_url(name) else str(folder / name) for name in names)
    return Wanted(first, tuple(others), found, prompt, question)


def decoded(
    wanted: Iterable[Wanted], total: int, size_px: int, options: argparse.Namespace, faults: Faults
) -> Iterator[tuple[list[Wanted], list[Any]]]:
    """Batches of what can be used, with uint8 pixels [3, S, S], a list where there are `others`, in order.

    Says how far it is, of `total`, unless lines without an output file go to a terminal.
    Some are decoded ahead, and no more. `options` are those of `add_pictures`.
    """
    from pipeline.trained_model import load_pixels

    def load(each: Wanted) -> "Tensor | list[Tensor]":
        if each.fault:
            raise each.fault
        pixels = [load_pixels(name, size_px, options.allow_loopback) for name in (each.image, *each.others)]
        return pixels if each.others else pixels[0]

    rest, waiting = iter(wanted), deque[list[tuple[Wanted, Future[Any]]]]()
    shown = options.output is not None or not sys.stdout.isatty()
    with ThreadPoolExecutor(LOADING_THREADS) as pool, ProgressLine("reading", total, "pictures", shown=shown) as line:
        while True:
            batch = [(each, pool.submit(load, each)) for each in islice(rest, options.batch_size)]
            waiting.append(batch)
            if batch and len(waiting) <= BATCHES_AHEAD:
                continue
            if not (first := waiting.popleft()):
                return
            usable = [(each, pixels) for each, future in first if (pixels := _result(future, faults)) is not None]
            if usable:
                yield [each for each, _ in usable], [pixels for _, pixels in usable]
            line.advance(len(first))


def _result(future: "Future[Any]", faults: Faults) -> Any:
    faults.seen += 1
    try:
        return future.result()
    except (OSError, ValueError) as error:
        faults.add(" ".join(str(error).split()))
        return None


def write_lines(lines: Iterable[dict[str, Any]], output: Path | None) -> None:
    """JSON lines: to the file, which appears whole, or to stdout as they come."""
    if output is None:
        for line in lines:
            print(json.dumps(line), flush=True)
        return
    with replacing(output) as file:
        for line in lines:
            file.write(f"{json.dumps(line)}\n".encode())
    print(output)
