"""`python -m eval.audit --weights W --data DIR`: whether answers change with the batch, and what that points to.

Answers a few questions of VQAv2 one at a time and together, and compares. Prompts of several lengths share a batch, so
that padding on the wrong side, which costs a causal model several points of accuracy, shows.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, print_settings

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.inference import LanguageModel

BATCH = 32
SHOWN = 3
FEW = 0.05  # of answers may turn on the last digits of a sum, in half precision


@dataclass(frozen=True)
class Changed:
    """One question whose answer in a batch is not its answer alone."""

    place: int
    prompt: str
    alone: str
    together: str
    padded: bool


@dataclass(frozen=True)
class Comparison:
    """What became of `total` prompts: how many were padded, and how many different answers there were alone."""

    changed: list[Changed]
    num_padded: int
    num_answers: int
    total: int


def compare(model: "LanguageModel", pixels_B3SS: "Tensor", prompts: Sequence[str]) -> Comparison:
    """Each prompt alone and in batches of up to 32; `padded` are those whose prompt was shorter than the longest."""
    from pipeline.models.language import Decoding

    decoding = Decoding(num_beams=5, max_new_tokens=10, min_new_tokens=1, length_penalty=-1.0)
    lengths = [len(ids) for ids in model.language.tokenizer(list(prompts)).input_ids]
    changed, num_padded, answers = [], 0, set[str]()
    for start in range(0, len(prompts), BATCH):
        places = range(start, min(start + BATCH, len(prompts)))
        together = model.generate(pixels_B3SS[start : start + BATCH], [prompts[place] for place in places], decoding)
        longest = max(lengths[place] for place in places)
        num_padded += sum(lengths[place] < longest for place in places)
        for place, text in zip(places, together, strict=True):
            [alone] = model.generate(pixels_B3SS[place : place + 1], [prompts[place]], decoding)
            answers.add(alone)
            if alone != text:
                changed.append(Changed(place, prompts[place], alone, text, lengths[place] < longest))
    return Comparison(changed, num_padded, len(answers), len(prompts))


def verdict(found: Comparison, kind: str) -> str:
    """One line. Raises ValueError with it when the answers depend on the batch, and when nothing could have shown it:
    no prompt was padded, or all are answered alike."""
    changed, total = found.changed, found.total
    if not found.num_padded and len(changed) <= FEW * total:
        raise ValueError(f"padding: cannot tell, the prompts of all {total} questions are equally long in their "
                         "batches, so that none was padded; name more --samples, or other questions")  # fmt: skip
    if found.num_answers == 1 and not changed:
        raise ValueError(f"padding: cannot tell, all {total} questions are answered alike, whatever is beside them; "
                         "name more --samples, or weights that are trained further")  # fmt: skip
    if not changed:
        return f"answers alone and in batches of {BATCH} are the same ({total} questions)"
    shown = "; ".join(f"{each.prompt!r}: {each.alone!r} alone, {each.together!r} together" for each in changed[:SHOWN])
    counted = f"{len(changed)} of {total} answers change with the batch ({shown})"
    if all(each.padded for each in changed) and len(changed) > FEW * total:
        side = "left" if kind == "causal" else "right, and masked"
        raise ValueError(f"padding: {counted}, all of prompts shorter than the longest beside them; the language model "
                         f"({kind}) must be padded on the {side}")  # fmt: skip
    if len(changed) > FEW * total:
        raise ValueError(f"batching: {counted}, also of prompts that were not padded")
    return f"{counted}: few, as last digits in half precision do"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.audit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, metavar="W", help="of stage 2, as eval.run takes them")
    parser.add_argument("--recipe", type=Path, help="of LAVIS' and transformers' weights")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="VQAv2's folder, as eval.run takes it")
    parser.add_argument("--split", default="val")
    parser.add_argument("--samples", type=int, default=4 * BATCH)
    options = parser.parse_args(arguments)
    if options.samples < 2:
        parser.error(f"argument --samples: {options.samples}, expected at least 2")
    print_settings(options)

    def work() -> None:
        import torch

        from eval.sets.question_sets import load_vqa
        from eval.tasks import vqa
        from pipeline.config import load_recipe
        from pipeline.data.transforms import load_evaluation_pixels
        from pipeline.distributed import process_group
        from pipeline.models.inference import LanguageModel
        from pipeline.weights.any_format import find_weights, load_any

        if not sys.stderr.isatty():
            from transformers.utils import logging

            logging.disable_progress_bar()
        source = find_weights(options.weights, load_recipe(options.recipe) if options.recipe else None)
        model, _ = load_any(source, process_group.device_name())
        if not isinstance(model, LanguageModel):
            raise ValueError(f"--weights {options.weights}: these are of stage 1, which writes no text")
        data = load_vqa(options.data, options.split, options.samples)
        paths = [data.image_paths[sample.image_id] for sample in data.samples]
        pixels = torch.stack([load_evaluation_pixels(path, model.image_size_px) for path in paths])
        prompts = list(vqa.prompts(data, vqa.DEFAULT_PROMPTS[model.language_kind]).values())
        print(verdict(compare(model, pixels, prompts), model.language_kind))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
