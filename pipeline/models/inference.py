"""Trained models as evaluation uses them: in evaluation mode, without gradients, from uint8 pixels and plain text.

Shapes: B batch, S image side, P image tokens, I image width, Q queries, E projection width, K texts, G patches on a
side.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.config import Recipe
from pipeline.models.attention_maps import on_grid, watched
from pipeline.models.fingerprint import fingerprint, fingerprint_of_settings
from pipeline.models.language import Decoding, LanguageTower
from pipeline.models.marked_text import MARK, PicturesOf
from pipeline.models.precision import autocast
from pipeline.models.qformer import PassWeights
from pipeline.models.ranking import Ranking
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower
from pipeline.objectives.matching import MATCH
from pipeline.tokens import Tokens, tokenise

MAX_RETRIEVAL_TOKENS = 35  # of a text in retrieval (the paper's evaluation)


class RetrievalModel:
    """Stage 1: image and text features, and the match of a picture with texts."""

    stage: Literal[1] = 1

    def __init__(self, recipe: Recipe, vision: VisionTower, bridge: Stage1Bridge, tokenizer: Any) -> None:
        self.recipe, self.vision, self.bridge, self.tokenizer = recipe, vision, bridge.eval(), tokenizer
        self.image_size_px = recipe.vision.image_size_px
        self.embedding_width = recipe.qformer.projection_width

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of all that training does not change, to notice when something has changed."""
        settings = fingerprint_of_settings([self.vision], self.tokenizer)
        return {"vision": fingerprint(self.vision), "settings": settings}

    def _autocast(self) -> torch.autocast:
        return autocast(self.bridge.temperature.device.type, self.recipe.qformer.precision)

    @cached_property
    def weights(self) -> PassWeights:
        """The bridge's weights as its passes want them: once, since the model is not trained."""
        with torch.no_grad(), self._autocast():
            return self.bridge.weights()

    def tokenise(self, texts: Sequence[str]) -> Tokens:
        """Texts as retrieval takes them: lower case, at most MAX_RETRIEVAL_TOKENS, padded on the right. [K, L] each."""
        encoded = self.tokenizer(
            [text.lower() for text in texts],
            padding=True,
            truncation=True,
            max_length=MAX_RETRIEVAL_TOKENS,
            return_tensors="pt",
        )
        device = self.bridge.temperature.device
        return Tokens(encoded.input_ids.to(device), encoded.attention_mask.bool().to(device))

    @torch.no_grad()
    def encode_images(self, pixels_B3SS: Tensor) -> Tensor:
        """uint8 pixels -> the frozen tower's tokens [B, P, I]."""
        frozen: Tensor = self.vision(pixels_B3SS.to(self.bridge.temperature.device))
        return frozen

    @torch.no_grad()
    def embed_images(self, frozen_BPI: Tensor) -> Tensor:
        """Frozen tokens -> unit-length query features [B, Q, E]; the cosine with a text is the largest over Q."""
        with self._autocast():
            image = self.bridge.qformer.project_image(frozen_BPI, self.weights)
            query_BQD, _ = self.bridge.qformer.encode_queries(image, self.weights)
            return self.bridge.embed_queries(query_BQD)

    def attention(self, pixels_B3SS: Tensor) -> Tensor:
        """What the queries look at in the last layer with cross-attention, without text: [B, Q, G, G]."""
        with watched(self.bridge.qformer) as found:
            self.embed_images(self.encode_images(pixels_B3SS))
        return on_grid(found[-1])

    @torch.no_grad()
    def embed_texts(self, texts: Tokens) -> Tensor:
        """Texts -> unit-length features [B, E]."""
        with self._autocast():
            return self.bridge.embed_text(self.bridge.qformer.encode_text(texts, self.weights))

    def match_logits(self, frozen_PI: Tensor, batches: Sequence[Tokens]) -> Tensor:
        """The match logit of one picture with each of K texts: [K]. See `class_logits`."""
        return self.class_logits(frozen_PI, batches)[:, MATCH]

    @torch.no_grad()
    def class_logits(self, frozen_PI: Tensor, batches: Sequence[Tokens]) -> Tensor:
        """ITM's two logits, class 1 = match, of one picture with each of K texts, a batch of them at a time: [K, 2].

        The picture's keys and values are made once.
        """
        with self._autocast():
            image = self.bridge.qformer.project_image(frozen_PI[None], self.weights)
            matched = [self.bridge.match([(image, len(texts.ids))], texts, self.weights) for texts in batches]
            return torch.cat(matched)


class LanguageModel:
    """Stage 2: text from a picture, through the frozen language model."""

    stage: Literal[2] = 2

    def __init__(
        self, recipe: Recipe, vision: VisionTower, bridge: Stage2Bridge, language: LanguageTower, reader: Any = None
    ) -> None:
        """`reader` is the Q-Former's tokenizer, if it reads questions (`qformer.question`)."""
        self.recipe, self.vision, self.bridge, self.language = recipe, vision, bridge.eval(), language
        self.reader = reader
        self.image_size_px = recipe.vision.image_size_px
        self.language_kind = language.kind

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of all that training does not change, to notice when something has changed."""
        towers = {"vision": self.vision, "language": self.language.model}
        settings = fingerprint_of_settings(towers.values(), self.language.tokenizer)
        return {name: fingerprint(tower) for name, tower in towers.items()} | {"settings": settings}

    @torch.no_grad()
    def generate(
        self,
        pixels_N3SS: Tensor | None,
        prompts: Sequence[str],
        decoding: Decoding,
        picture_of: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
        pictures_of: PicturesOf | None = None,
    ) -> list[str]:
        """Continue each prompt after its picture; without pixels, the frozen language model answers blind.

        `picture_of` [prompts] says which of the N pictures a prompt goes with, where some share one. `pictures_of`
        are those of a prompt that has a mark for each. `questions` [prompts] are what the Q-Former reads beside the
        picture. Raises ValueError when it reads, and they are missing, or a prompt has several pictures.
        """
        if pictures_of is not None:
            if self.reader is not None:
                raise ValueError(
                    f"prompt: marks pictures by {MARK}, and this Q-Former was trained to read a question beside one "
                    "picture; leave the marks out, or take weights without"
                )
            return self.language.generate(self._soft_prompts(pixels_N3SS, None, None), prompts, decoding, pictures_of)
        soft_prompts = self._soft_prompts(pixels_N3SS, picture_of, questions)
        return self.language.generate(soft_prompts, prompts, decoding)

    @torch.no_grad()
    def attention(self, pixels_B3SS: Tensor, questions: Sequence[str] | None = None) -> Tensor:
        """What the queries look at in the last layer with cross-attention: [B, Q, G, G]. `questions` as `generate`."""
        with watched(self.bridge.qformer) as found:
            self._soft_prompts(pixels_B3SS, None, questions)
        return on_grid(found[-1])

    def ranking(self, answers: Sequence[str], template: str, num_candidates: int) -> Ranking:
        """A closed list of answers to questions in a prompt, ready to be ranked."""
        assert self.recipe.language is not None
        return Ranking(self.language, answers, template, self.recipe.language.end_text, num_candidates)

    @torch.no_grad()
    def rank(
        self,
        pixels_N3SS: Tensor | None,
        prompts: Sequence[str],
        ranking: Ranking,
        picture_of: Sequence[int] | None = None,
        questions: Sequence[str] | None = None,
    ) -> list[str]:
        """The best answer of a closed list to each prompt; else as `generate`."""
        soft = self._soft_prompts(pixels_N3SS, picture_of, questions)
        return [
            ranking.best(None if soft is None else soft[place : place + 1], prompt)
            for place, prompt in enumerate(prompts)
        ]

    def _soft_prompts(
        self, pixels_N3SS: Tensor | None, picture_of: Sequence[int] | None, questions: Sequence[str] | None
    ) -> Tensor | None:
        """Of each prompt, [B, Q, H]; each picture is encoded once."""
        if pixels_N3SS is None:
            return None
        device = self.bridge.ln_vision.weight.device
        image_of_B = None if picture_of is None else torch.tensor(picture_of, device=device)
        asked = None
        if self.reader is not None:
            if questions is None:
                raise ValueError("qformer.question: this Q-Former was trained to read a question beside each picture; "
                                 "ask one, or take weights without")  # fmt: skip
            asked = tokenise(self.reader, questions, self.recipe.data.max_text_tokens).to(str(device))
        with autocast(device.type, self.recipe.qformer.precision):
            soft_prompts: Tensor = self.bridge(self.vision(pixels_N3SS.to(device)), asked, image_of_B)
        return soft_prompts
