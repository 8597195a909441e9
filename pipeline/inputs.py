"""What commands that use a trained model read: weights, and pictures from files, folders and JSON lines.

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

from pipeline.command_line import Parser
from pipeline.files import parse_json, replacing
from pipeline.progress_line import ProgressLine

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
        print(f"left out: {message}", file=sys.stderr, flush=True)

    def exit_code(self) -> int:
        """1 after any fault, with the count on stderr."""
        if self.count:
            print(f"{self.count} of {self.seen} were left out; see the lines above", file=sys.stderr)
        return int(self.count > 0)


def add_weights(parser: Parser, stage: int) -> None:
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
        help="edits of --recipe; of a run: new places of its towers",
    )


def load_weights(options: argparse.Namespace, stage: int) -> "Model":
    """The model that the flags name. Raises ValueError in one line, also for another stage."""
    from pipeline.trained_model import load

    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    model = load(options.weights, options.recipe, options.set)
    if model.stage != stage:
        raise ValueError(
            f"--weights {options.weights}: are of stage {model.stage}; this needs weights of stage {stage}"
        )
    return model


def named_pictures(names: Iterable[str]) -> list[Wanted]:
    """The files, and all pictures below the folders, sorted."""
    return list(_named(names))


def _named(names: Iterable[str]) -> Iterator[Wanted]:
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
            yield from (Wanted(str(each)) for each in found)
            if not found:
                yield Wanted(name, fault=ValueError(f"{name}: is a folder without pictures; name another"))
        else:
            yield Wanted(name)


def listed_pictures(path: Path) -> Iterator[Wanted]:
    """The lines of a file: {"image": FILE}, and "prompt" or "question" where it has one. Other fields are shown again.

    A relative FILE begins at the folder of `path`. A prompt beside a question has {} in its place.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            try:
                if line.strip():
                    yield _of_line(line, path.parent)
            except ValueError as error:
                yield Wanted(place, fault=ValueError(f"{place}: {error}"))


def count_lines(path: Path) -> int:
    """How many pictures `listed_pictures` finds, at most."""
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _of_line(line: bytes, folder: Path) -> Wanted:
    """Raises ValueError for what is no such line."""
    found = parse_json(line)
    if not isinstance(found, dict) or "image" not in found:
        raise ValueError('has no image; write {"image": FILE}')
    for name in ("image", "prompt", "question"):
        if not isinstance(found.get(name, ""), str):
            raise ValueError(f"{name} {found[name]!r:.80} is not a text; write a text, or leave it out")
    prompt, question = found.get("prompt"), found.get("question")
    if prompt is not None and question is not None and prompt.count("{}") != 1:
        raise ValueError(f"prompt {prompt!r:.80} needs one {{}} where the question goes")
    image = found["image"] if "://" in found["image"] else str(folder / found["image"])
    return Wanted(image, found, prompt, question)


def decoded(
    wanted: Iterable[Wanted], total: int, size_px: int, batch_size: int, faults: Faults, output: Path | None = None
) -> Iterator[tuple[list[Wanted], list["Tensor"]]]:
    """Batches of what can be used, with uint8 pixels [3, S, S], in order. Some are decoded ahead, and no more.

    Says how far it is, of `total`, unless lines without an `output` go to a terminal.
    """
    from pipeline.data.transforms import load_evaluation_pixels

    def load(each: Wanted) -> "Tensor":
        if each.fault:
            raise each.fault
        if "://" in each.image:
            raise ValueError(f"{each.image}: is a URL, and none is fetched here; download the picture first")
        return load_evaluation_pixels(Path(each.image), size_px)

    rest, waiting = iter(wanted), deque[list[tuple[Wanted, Future[Any]]]]()
    shown = output is not None or not sys.stdout.isatty()
    with ThreadPoolExecutor(LOADING_THREADS) as pool, ProgressLine("reading", total, "pictures", shown=shown) as line:
        while True:
            batch = [(each, pool.submit(load, each)) for each in islice(rest, batch_size)]
            waiting.append(batch)
            if batch and len(waiting) <= BATCHES_AHEAD:
                continue
            if not (first := waiting.popleft()):
                return
            usable = [(each, pixels) for each, future in first if (pixels := _result(future, faults)) is not None]
            if usable:
                yield [each for each, _ in usable], [pixels for _, pixels in usable]
            line.advance(len(first))


def _result(future: "Future[Tensor]", faults: Faults) -> "Tensor | None":
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
