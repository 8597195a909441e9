"""Draws text samples for language towers: a description of a scene, then a text that depends on it.

A tower must read the description to continue the text. Later, soft prompts in its place say what a picture shows. Some
samples have no description, so that answers without a picture are a fair baseline.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.miniature.language import ask, describe, describe_fully
from data_prep.miniature.scenes import HeldOut, Scene, draw_scene

QUESTION_SHARE = 0.6
BLIND_SHARE = 0.1
SECOND_CAPTION_SHARE = 0.3
"""How often the description also has a second caption of the scene, before or after it."""
POOLED_BATCHES = 8
"""Batches that are drawn at once and sorted by length, which leaves little padding."""
ANSWER_CUES = ("short answer:", "short answer:", "answer:")
"""The words between a question and its answer in the prompts of the two language models."""
_DOMAINS: tuple[HeldOut, ...] = ("never", "never", "never", "never", "some", "all")


@dataclass(frozen=True)
class TextSample:
    """What is given (`description`, which may be empty, then `prompt`), and what should follow (`target`)."""

    description: str
    prompt: str
    target: str

    def num_words(self) -> int:
        return sum(len(text.split()) for text in (self.description, self.prompt, self.target))


def text_batches(batch_size: int, rng: np.random.Generator) -> Iterator[list[TextSample]]:
    """Batches without end, in random order; the samples of a batch have similar lengths."""
    while True:
        samples = [draw_text_sample(rng) for _ in range(batch_size * POOLED_BATCHES)]
        samples.sort(key=TextSample.num_words)
        for i in rng.permutation(POOLED_BATCHES):
            yield samples[i * batch_size : (i + 1) * batch_size]


def draw_text_sample(rng: np.random.Generator) -> TextSample:
    """A caption to continue, cut between its first word and its middle, or a question to answer."""
    scene = draw_scene(rng, held_out=_DOMAINS[int(rng.random() * len(_DOMAINS))])
    description = "" if rng.random() < BLIND_SHARE else describe_for_reading(scene, rng)
    if rng.random() < QUESTION_SHARE:
        return question_sample(scene, description, rng)
    words = describe(scene, rng).split()
    cut = 1 + int(rng.random() * max(1, len(words) // 2))
    return TextSample(description, " ".join(words[:cut]), " ".join(words[cut:]))


def question_sample(
    scene: Scene, description: str, rng: np.random.Generator, cues: tuple[str, ...] = ANSWER_CUES
) -> TextSample:
    """A question about the scene and the answer that most people give."""
    question = ask(scene, rng)
    cue = cues[int(rng.random() * len(cues))]
    return TextSample(description, f"question: {question.text} {cue}", question.answer)


def describe_for_reading(scene: Scene, rng: np.random.Generator) -> str:
    """A full description, often with another caption before or after it."""
    captions = [describe_fully(scene, rng)]
    if rng.random() < SECOND_CAPTION_SHARE:
        captions.insert(int(rng.random() * 2), describe(scene, rng))
    return " ".join(captions)
