"""The model `blip2` of lmms-eval, for weights that `pipeline.load` opens. lmms-eval finds it by an entry point.

lmms-eval --model blip2 --model_args weights=W --tasks vqav2_val --batch_size 32
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NoReturn

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from pipeline import prompts
from pipeline.models.marked_text import MARK
from pipeline.trained_model import load

MODEL = ModelManifest("blip2", simple_class_path="pipeline.lmms_eval.Blip2")
LENGTHS = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty")
DRAWN = ("top_p", "temperature", "seed")
GREEDY = {"num_beams": 1}  # where a task says nothing, as lmms-eval has it


class Blip2(lmms):  # type: ignore[misc]
    """Answers tasks whose `output_type` is generate_until. Raises ValueError in one line for what it cannot do."""

    def __init__(
        self, weights: str, recipe: str | None = None, prompt: str = "{}", batch_size: Any = 1, device: Any = None
    ) -> None:
        """`weights` and `recipe` are those of `pipeline.load`.

        `prompt` has {} for the text of a task, or stands in its place; the paper's have names, as in
        `pipeline.generate`.
        """
        super().__init__()
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise ValueError(f"--batch_size {batch_size}: is not a number of samples; give one, as 32")
        if device is not None:
            raise ValueError(f"--device {device}: the GPU is chosen here; leave it out, and set CUDA_VISIBLE_DEVICES")
        self.blip2 = load(weights, recipe)
        if self.blip2.stage == 1:
            raise ValueError(f"weights={weights}: are of stage 1, which writes no text; give weights of stage 2")
        self.prompt, self.batch_size = prompts.NAMED_PROMPTS.get(prompt, prompt), int(batch_size)

    @property
    def device(self) -> Any:
        """Where lmms-eval has its own tensors when there are several ranks."""
        return self.blip2.model.bridge.ln_vision.weight.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The texts, in order."""
        written: list[str] = []
        for (how, task, split), some in groupby(requests, lambda each: (each.args[1], *each.args[4:])):
            decoding, samples = _decoding(how, task), [each.args for each in some]
            for start in range(0, len(samples), self.batch_size):
                pictures, texts, read = [], [], []
                for text, _, pictures_of, number, *_ in samples[start : start + self.batch_size]:
                    shown = _shown(pictures_of(self.task_dict[task][split][number]), f"{task}: sample {number}")
                    asked = prompts.as_trained(text, self.blip2.recipe)
                    if len(shown) > 1 and MARK not in asked:
                        asked = " ".join([MARK] * len(shown)) + f" {asked}"
                    filled = prompts.fill(self.prompt, asked) if "{}" in self.prompt else self.prompt
                    pictures.append(shown if len(shown) > 1 or MARK in filled else shown[0])
                    texts.append(filled)
                    read.append(prompts.read_by_qformer(asked, filled, self.blip2.recipe))
                of_qformer = [each for each in read if each is not None] or None
                found = self.blip2.write(pictures, texts, of_qformer, **decoding)
                written += [_until(how.get("until"), text) for text in found]
        return written

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        raise ValueError(f"{requests[0].args[-2]}: asks for log-likelihoods; take a task of output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        raise ValueError(f"{requests[0].args[-2]}: has several rounds; take a task of output_type generate_until")


def _decoding(how: dict[str, Any], task: str) -> dict[str, Any]:
    """What `Model.write` takes of a task's generation_kwargs. What has no effect is said on stderr."""
    unknown = sorted(how.keys() - {*LENGTHS, *DRAWN, "do_sample", "until"})
    if unknown:
        print(f"{task}: generation_kwargs {', '.join(unknown)}: have no effect on blip2", file=sys.stderr)
    found = GREEDY | {name: how[name] for name in LENGTHS if how.get(name) is not None}
    if how.get("do_sample") and how.get("temperature", 1.0):
        found |= {"top_p": 1.0} | {name: how[name] for name in DRAWN if how.get(name) is not None}
    return found


def _shown(pictures: Any, place: str) -> list[Image.Image]:
    found = list(pictures or ())
    if not found or not all(isinstance(each, Image.Image) for each in found):
        kinds = ", ".join(sorted({type(each).__name__ for each in found})) or "nothing"
        raise ValueError(f"{place} shows {kinds}, and blip2 needs pictures; take a task of pictures")
    return found


def _until(stops: str | Sequence[str] | None, text: str) -> str:
    """The text before the first of the stops."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0] if stop else text
    return text.strip()
