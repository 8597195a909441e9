"""`python -m eval.audit --weights W --data DIR`: check that a model's answers do not depend on the batch.

It answers some questions of VQAv2 one at a time and in batches, and compares the answers. The prompts of a batch have
several lengths, so a model that is padded on the wrong side is found. That fault costs a causal model several points of
accuracy.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, positive, print_settings
from pipeline.progress_line import ProgressLine

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.inference import LanguageModel

BATCH = 32
SHOWN = 3  # changed answers in a message
FEW = 0.05  # the share of answers that may change: in half precision, a sum's last digits depend on the batch


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
    """Of `total` prompts: which answers changed, how many prompts were padded, how many different answers there are."""

    changed: list[Changed]
    num_padded: int
    num_answers: int
    total: int


def compare(
    model: "LanguageModel", pixels_B3SS: "Tensor", prompts: Sequence[str], questions: Sequence[str] | None = None
) -> Comparison:
    """Each prompt alone and in batches of up to 32; `padded` are those whose prompt was shorter than the longest.

    `questions` are what the Q-Former reads, if it reads.
    """
    from pipeline.models.language import Decoding

    decoding = Decoding(num_beams=5, max_new_tokens=10, min_new_tokens=1, length_penalty=-1.0)
    lengths = [len(ids) for ids in model.language.tokenizer(list(prompts)).input_ids]
    changed, num_padded, answers = [], 0, set[str]()
    with ProgressLine("answering", len(prompts), "questions") as line:
        for start in range(0, len(prompts), BATCH):
            places = range(start, min(start + BATCH, len(prompts)))
            asked = None if questions is None else questions[start : start + BATCH]
            texts = model.generate(
                pixels_B3SS[start : start + BATCH], prompts[start : start + BATCH], decoding, questions=asked
            )
            longest = max(lengths[place] for place in places)
            num_padded += sum(lengths[place] < longest for place in places)
            for place, text in zip(places, texts, strict=True):
                own = None if questions is None else [questions[place]]
                [alone] = model.generate(pixels_B3SS[place : place + 1], [prompts[place]], decoding, questions=own)
                answers.add(alone)
                line.advance()
                if alone != text:
                    changed.append(Changed(place, prompts[place], alone, text, lengths[place] < longest))
    return Comparison(changed, num_padded, len(answers), len(prompts))


def verdict(found: Comparison, kind: str) -> str:
    """One line that says that the answers do not depend on the batch.

    Raises ValueError when they do, and when the questions cannot show it: no prompt was padded, or all answers are the
    same.
    """
    changed, total = found.changed, found.total
    if not found.num_padded and len(changed) <= FEW * total:
        raise ValueError(f"--samples {total}: padding was not tested, because the prompts of each batch are equally "
                         "long; give more samples, or other questions")  # fmt: skip
    if found.num_answers == 1 and not changed:
        raise ValueError(f"--samples {total}: padding was not tested, because all answers are the same; give more "
                         "samples, or weights that are trained longer")  # fmt: skip
    if not changed:
        return f"the answers are the same, one at a time and in batches of {BATCH} ({total} questions)"
    shown = "; ".join(f"{each.prompt!r}: {each.alone!r} alone, {each.together!r} together" for each in changed[:SHOWN])
    counted = f"{len(changed)} of {total} answers change with the batch ({shown})"
    if all(each.padded for each in changed) and len(changed) > FEW * total:
        side = "left" if kind == "causal" else "right, and masked"
        raise ValueError(f"padding: {counted}, all of them to padded prompts; the language model ({kind}) must be "
                         f"padded on the {side}")  # fmt: skip
    if len(changed) > FEW * total:
        raise ValueError(f"batching: {counted}, also to prompts without padding; something else in a batch changes "
                         "the answers")  # fmt: skip
    return f"{counted}: few enough to be rounding in half precision"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.audit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, metavar="W", help="of stage 2, as eval.run takes them")
    parser.add_argument("--recipe", type=Path, help="needed for LAVIS' and transformers' weights")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE",
                        help="edits of --recipe; of a run: new places, language.precision")  # fmt: skip
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="VQAv2's folder, as eval.run takes it")
    parser.add_argument("--split", default="val", help="of VQAv2 (default val)")
    parser.add_argument("--samples", type=positive, default=4 * BATCH, help=f"questions (default {4 * BATCH})")
    options = parser.parse_args(arguments)
    if options.samples < 2:
        parser.error(f"argument --samples: {options.samples}: a batch needs at least 2")
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
        source = find_weights(
            options.weights, load_recipe(options.recipe, options.set) if options.recipe else None, options.set
        )
        model, _ = load_any(source, process_group.device_name())
        if not isinstance(model, LanguageModel):
            raise ValueError(f"--weights {options.weights}: weights of stage 1 write no text; name weights of stage 2")
        data = load_vqa(options.data, options.split, options.samples)
        paths = [data.image_paths[sample.image_id] for sample in data.samples]
        pixels = torch.stack([load_evaluation_pixels(path, model.image_size_px) for path in paths])
        prompts = vqa.prompts(data, vqa.default_prompt(model.recipe, model.language_kind), model.recipe)
        asked = vqa.questions(data, model.recipe, prompts)
        found = compare(model, pixels, list(prompts.values()), list(asked.values()) if asked else None)
        print(verdict(found, model.language_kind))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
