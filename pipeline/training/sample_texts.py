"""Texts of a few held-out pictures while training goes on, each beside what the model writes for another picture.

A model that ignores its pictures writes the same twice. That is seen at the first measurement, whatever the losses say.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline import prompts
from pipeline.config import Recipe
from pipeline.data.batch import Batch, Collate
from pipeline.data.manifest import load_manifest
from pipeline.data.order import SampleOrder
from pipeline.data.stream import Sample, SampleStream
from pipeline.distributed import process_group
from pipeline.models.build import build_tokenizer
from pipeline.models.language import Decoding
from pipeline.tokens import stack_tokens

log = logging.getLogger(__name__)
SHARE = "texts_differ_share"
TRIES = 10  # samples read for each picture that is wanted: of one picture's captions or questions only one is taken


@dataclass(frozen=True)
class SampleText:
    """A line of samples.jsonl, without its step. `question` is empty where captions are trained."""

    key: str
    question: str
    text: str
    other_key: str
    text_of_other: str
    reference: str


class SampleTexts:
    """Texts of `validation.sample_texts` pictures of the validation manifest, drawn by the recipe's seed.

    Stage 2's language model writes them, in stage 1 the Q-Former itself with ITG's head. Each is written a second time
    with the soft prompts, or the queries, of the next picture, and the same question.
    """

    def __init__(self, recipe: Recipe, collate: Collate) -> None:
        self._samples = _drawn(recipe)
        self.pictures = [sample.pixels_3SS for sample in self._samples]
        self._recipe, self._batch = recipe, _doubled(collate(self._samples)) if self._samples else None

    @torch.no_grad()
    def texts(self, engine: Any) -> list[SampleText]:
        """One for each picture, on rank 0; none on other ranks. Every rank calls it at the same step.

        Soft prompts, and stage 1's texts, are made on all ranks, whose weights may be spread over them (ZeRO-3). Stage
        2's text is written by rank 0; by all ranks where they share the language model.
        """
        if self._batch is None:
            return []
        engine.eval()
        try:
            with torch.compiler.set_stance("force_eager"):  # blocks are compiled for the shapes of training
                return self._written(engine, self._batch)
        finally:
            engine.train()

    def _written(self, engine: Any, batch: Batch) -> list[SampleText]:
        made = engine(batch.to(str(engine.device)), None)
        written = self._by_itg(made["texts"]) if "texts" in made else self._by_language_model(engine, made["prompts"])
        if process_group.rank():
            return []
        own, of_other = written[: len(self._samples)], written[len(self._samples) :]
        others = [*self._samples[1:], *self._samples[:1]]
        return [
            SampleText(sample.key, sample.question, text, other.key, text_of_other, _reference(sample))
            for sample, text, other, text_of_other in zip(self._samples, own, others, of_other, strict=True)
        ]

    def _by_itg(self, ids_BL: Tensor) -> list[str]:
        """The texts up to [SEP]."""
        tokenizer = build_tokenizer(self._recipe.qformer)
        rows = [[*row, tokenizer.sep_token_id] for row in ids_BL.tolist()]
        texts: list[str] = tokenizer.batch_decode([row[: row.index(tokenizer.sep_token_id)] for row in rows])
        return texts

    def _by_language_model(self, engine: Any, prompts_2BQH: Tensor) -> list[str]:
        """Nothing on ranks that do not write."""
        language, shared = engine.module.towers.language, self._recipe.run.layout == "sharded"
        if process_group.rank() and not shared:
            return []
        asks = self._recipe.data.sample == "question"
        told = [_told(sample.question, self._recipe, language.kind) for sample in self._samples]
        limit = prompts.ANSWER_DECODING if asks else prompts.CAPTION_DECODING
        decoding = Decoding(num_beams=1, max_new_tokens=min(20, limit["max_new_tokens"]), in_step=shared)
        written: list[str] = language.generate(prompts_2BQH, told * 2, decoding)
        return written


def share_that_differs(texts: Sequence[SampleText]) -> float:
    """Of the pictures, how many have another text than with another picture's soft prompts."""
    return sum(each.text != each.text_of_other for each in texts) / len(texts)


def _told(question: str, recipe: Recipe, kind: Literal["causal", "seq2seq"]) -> str:
    """The prompt, as `pipeline.generate` has it; a sample's question is clean already."""
    if recipe.data.sample == "question":
        return prompts.fill(prompts.question_prompt(recipe, kind), question)
    return prompts.caption_prompt(recipe)


def _reference(sample: Sample) -> str:
    """The text that training would have drawn, or the answer that most gave."""
    return max(sample.texts(), key=lambda text: text[1])[0]


def _drawn(recipe: Recipe) -> list[Sample]:
    """Samples of different pictures, uncropped; none where they would not be two, or where nothing learns to write."""
    validation, writes = recipe.validation, recipe.stage == 2 or recipe.objectives.itg_weight
    if validation is None or not validation.sample_texts or not writes:
        return []
    manifest = load_manifest(validation.manifest)
    order = SampleOrder(manifest, recipe.seed, recipe.data.shuffle_shards, recipe.data.sample)
    settings = recipe.data.model_copy(update={"crop_scale": (1.0, 1.0), "horizontal_flip": False})
    stream = SampleStream(manifest, order, settings, recipe.vision.image_size_px)
    found: dict[str, Sample] = {}
    for position in range(min(order.samples, TRIES * validation.sample_texts)):
        sample = stream[0, position]
        found.setdefault(sample.key, sample)
        if len(found) == validation.sample_texts:
            break
    if len(found) < 2:
        log.warning("validation.sample_texts: %s has one picture only; no texts are shown", validation.manifest)
        return []
    return list(found.values())


def _doubled(batch: Batch) -> Batch:
    """The batch, and then the same questions with the next picture's pixels each."""
    pixels_2B3SS = torch.cat([batch.pixels_B3SS, batch.pixels_B3SS.roll(-1, 0)])
    question = batch.question
    if question is not None:
        question = stack_tokens([question, question])
    return replace(batch, pixels_B3SS=pixels_2B3SS, question=question)
