"""`python -m pipeline.generate --weights W --image FILE...`: write text from pictures, one JSON line a picture.

Without a prompt it writes captions; with a question, the answer; both as `eval.run` does. A picture that cannot be used
is left out with a line on stderr, and the exit code is 1.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, finish, positive
from pipeline.files import check_target, read_lines
from pipeline.inputs import (
    Faults,
    Wanted,
    add_pictures,
    add_weights,
    count_lines,
    decoded,
    listed_pictures,
    load_weights,
    named_pictures,
    write_lines,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.trained_model import Model

DECODING = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "top_p", "temperature", "seed")


def flags() -> Parser:
    parser = Parser(prog="python -m pipeline.generate", description=__doc__)
    add_weights(parser, 2)
    what = parser.add_argument_group("what to read and write")
    add_pictures(parser, what)
    what.add_argument("--jsonl", type=Path, metavar="FILE",
                      help='lines {"image": PATH}, also with "prompt" or "question"')  # fmt: skip
    what.add_argument("--together", action="store_true",
                      help="all of --image are of one text; --prompt has a mark <image> for each")  # fmt: skip
    what.add_argument("--output", type=Path, metavar="FILE", help="write the lines to this file; default: print them")
    what.add_argument("--chat", action="store_true", help="answer questions on stdin about one picture, line by line")
    text = parser.add_argument_group("the text")
    text.add_argument("--prompt", help="its beginning, with {} for a question, or caption, answer or short-answer, the "
                      "paper's; default: evaluation's")  # fmt: skip
    text.add_argument("--question", help="a question about every picture")
    text.add_argument("--num-beams", type=positive, metavar="N", help="beams of the search; default: 5")
    text.add_argument("--max-new-tokens", type=positive, metavar="N", help="default: 30, answers 10")
    text.add_argument("--min-new-tokens", type=positive, metavar="N",
                      help="default: captions 8 (causal models 4); answers, and with a --prompt, 1")  # fmt: skip
    text.add_argument("--length-penalty", type=float, metavar="X", help="default: 1, answers -1")
    drawn = parser.add_argument_group("nucleus sampling, in place of beams")
    drawn.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens with this probability")
    drawn.add_argument("--temperature", type=float, metavar="T", help="divides the logits; default: 1")
    drawn.add_argument("--seed", type=int, help="the same seed draws the same text; default: 0")
    return parser


def texts_of(
    model: "Model",
    wanted: Sequence[Wanted],
    pixels: Sequence["Tensor"],
    options: argparse.Namespace,
    how: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """A line for each picture, in order; neighbours of one kind are written together."""

    def kind(pair: tuple[Wanted, "Tensor"]) -> tuple[bool, bool]:
        each = pair[0]
        asks = each.question is not None or (options.question is not None and each.prompt is None)
        return asks, each.prompt is not None or options.prompt is not None

    for (asks, has_prompt), pairs in groupby(zip(wanted, pixels, strict=True), kind):
        some, pictures = zip(*pairs, strict=True)
        prompts = [options.prompt if each.prompt is None else each.prompt for each in some] if has_prompt else None
        if asks:
            questions = [options.question if each.question is None else each.question for each in some]
            texts = model.answer(pictures, questions, prompts, **how)
        else:
            questions, texts = [None] * len(some), model.caption(pictures, prompts, **how)
        for each, question, text in zip(some, questions, texts, strict=True):
            asked = {} if question is None else {"question": question}
            shown = {"images": [each.image, *each.others]} if each.others else {"image": each.image}
            yield {**shown, **asked, **each.fields, "text": text}


def chat(model: "Model", pixels_3SS: "Tensor", prompt: str | None, how: dict[str, Any]) -> None:
    """Answer each line of stdin, with the turns before it."""
    from pipeline.prompts import CHAT_DECODING, CHAT_TURNS, chat_prompt

    turns: list[tuple[str, str]] = []
    for line in sys.stdin:
        if question := line.strip():
            template = chat_prompt(model.recipe) if prompt is None else prompt
            answer = model.answer(pixels_3SS, question, template, turns[-CHAT_TURNS:], **(CHAT_DECODING | how))
            print(answer, flush=True)
            turns.append((question, answer))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = flags()
    options = parser.parse_args(arguments)
    if not options.image and not options.jsonl:
        parser.error("argument --image: is missing; give pictures, or --jsonl")
    if options.chat and (len(options.image) != 1 or options.jsonl or options.question or options.output):
        parser.error("argument --chat: takes one --image, and neither --jsonl, --question nor --output")
    if options.together and (options.jsonl or options.chat or not options.prompt):
        parser.error("argument --together: takes --image and a --prompt with a mark <image> for each, alone")
    if options.top_p is not None and options.num_beams is not None:
        parser.error("argument --num-beams: has no effect with --top-p, which draws; leave it out")
    how = {name: getattr(options, name) for name in DECODING if getattr(options, name) is not None}

    def work() -> int:
        from pipeline.models.marked_text import pieces_of
        from pipeline.models.sampling import check_sampling
        from pipeline.prompts import NAMED_PROMPTS
        from pipeline.trained_model import load_pixels

        options.prompt = NAMED_PROMPTS.get(options.prompt, options.prompt)
        check_sampling(options.top_p, options.temperature, options.seed)
        if options.output:
            check_target(options.output)
        if options.jsonl:
            next(read_lines(options.jsonl), None)  # before the model is loaded
        named = named_pictures(options.image)
        if options.together:
            pieces_of(options.prompt, len(named))
            named = [Wanted(named[0].image, tuple(each.image for each in named[1:]))]
        wanted = chain(named, listed_pictures(options.jsonl) if options.jsonl else ())
        model, faults = load_weights(options, 2), Faults()
        if options.chat:
            pixels_3SS = load_pixels(options.image[0], model.image_size_px, options.allow_loopback)
            chat(model, pixels_3SS, options.prompt, how)
            return 0
        total = len(named) + (count_lines(options.jsonl) if options.jsonl else 0)
        batches = decoded(wanted, total, model.image_size_px, options, faults)
        lines = (line for some, pixels in batches for line in texts_of(model, some, pixels, options, how))
        write_lines(lines, options.output)
        return faults.exit_code()

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
