"""Writes questions about a drawn scene, each with the answers of ten people, as in VQAv2."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.miniature.captions import NUMBER_WORDS, holds, noun_phrase, with_article
from data_prep.miniature.scenes import (
    BACKGROUNDS,
    COMMON_COLOURS,
    COMMON_SHAPES,
    HELD_OUT_COLOURS,
    HELD_OUT_SHAPES,
    Scene,
    Thing,
)

AnswerType = Literal["yes/no", "number", "other"]
NUM_ANSWERS = 10
SYNONYMS = {
    "circle": "disc",
    "cross": "plus",
    "ring": "donut",
    "star": "star shape",
    "purple": "violet",
    "grey": "dark grey",
    "cyan": "light blue",
    "1": "one",
    "2": "two",
    "3": "three",
}
"""The usual answer -> what some people say instead."""


@dataclass(frozen=True)
class Question:
    """A question and its answers. `answer` is that of most people, `question_type` is the first words of the
    question."""

    text: str
    answer: str
    question_type: str
    answer_type: AnswerType
    answers: tuple[str, ...]


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """One question of a random kind that the scene answers. Yes and no are equally frequent."""
    while True:
        which = rng.random()
        if which < 0.3:
            question = _ask_colour(scene, rng)
        elif which < 0.5:
            question = _ask_shape(scene, rng)
        elif which < 0.63:
            question = _ask_number(scene, rng)
        elif which < 0.8:
            question = _ask_presence(scene, rng)
        elif which < 0.9:
            question = _ask_background(scene, rng)
        else:
            question = _ask_relation(scene, rng)
        if question is not None:
            return question


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _pick(scene, rng)
    name = _name_without_colour(thing, scene)
    if name is None:
        return None
    return _answered(f"what colour is {name}?", thing.colour, "what colour is the", "other", rng)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _pick(scene, rng)
    if sum(other.colour == thing.colour for other in scene.things) == 1:
        name = f"the {thing.colour} thing"
    elif sum((other.colour, other.size) == (thing.colour, thing.size) for other in scene.things) == 1:
        name = f"the {thing.size} {thing.colour} thing"
    else:
        return None
    return _answered(f"what shape is {name}?", thing.shape, "what shape is the", "other", rng)


def _ask_number(scene: Scene, rng: np.random.Generator) -> Question:
    noun = "things" if rng.random() < 0.5 else "shapes"
    return _answered(f"how many {noun} are there?", str(len(scene.things)), "how many", "number", rng)


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Question:
    """Is there a COLOUR SHAPE? For "no", the question mostly mixes words of present things, or changes one word."""
    thing = _pick(scene, rng)
    colour, shape = thing.colour, thing.shape
    if rng.random() < 0.5:
        return _answered(f"is there {with_article(f'{colour} {shape}')}?", "yes", "is there a", "yes/no", rng)
    looks = {(other.colour, other.shape) for other in scene.things}
    while (colour, shape) in looks:
        other, change = _pick(scene, rng), rng.random()
        if change < 0.4:
            colour = other.colour
        elif change < 0.7:
            colour = _like(thing.colour, rng)
        else:
            shape = _like(thing.shape, rng)
    return _answered(f"is there {with_article(f'{colour} {shape}')}?", "no", "is there a", "yes/no", rng)


def _ask_background(scene: Scene, rng: np.random.Generator) -> Question:
    return _answered("what colour is the background?", scene.background, "what colour is the background", "other", rng)


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is the A left of the B? For "no", the relation is reversed."""
    if len(scene.things) != 2:
        return None
    a, b = scene.things if rng.random() < 0.5 else scene.things[::-1]
    names = [noun_phrase(thing, rng, 0.0).split(" ", 1)[1] for thing in (a, b)]
    if a.shape != b.shape and rng.random() < 0.5:
        names = [a.shape, b.shape]
    axis = ("left", "right") if holds("left", a, b) or holds("right", a, b) else ("above", "below")
    relation = axis[int(rng.random() < 0.5)]
    words = f"{relation} of" if axis[0] == "left" else relation
    answer = "yes" if holds(relation, a, b) else "no"
    return _answered(f"is the {names[0]} {words} the {names[1]}?", answer, "is the", "yes/no", rng)


def _pick(scene: Scene, rng: np.random.Generator) -> Thing:
    return scene.things[int(rng.random() * len(scene.things))]


def _name_without_colour(thing: Thing, scene: Scene) -> str | None:
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        return f"the {thing.shape}"
    if sum((other.shape, other.size) == (thing.shape, thing.size) for other in scene.things) == 1:
        return f"the {thing.size} {thing.shape}"
    return None


def _like(word: str, rng: np.random.Generator) -> str:
    """Another word of the same kind: a common one for a common one, else any of its kind."""
    kinds = (
        COMMON_SHAPES,
        COMMON_COLOURS,
        COMMON_SHAPES + HELD_OUT_SHAPES,
        COMMON_COLOURS + HELD_OUT_COLOURS,
        BACKGROUNDS,
    )
    options = [other for other in next(kind for kind in kinds if word in kind) if other != word]
    return options[int(rng.random() * len(options))]


def _answered(
    text: str, answer: str, question_type: str, answer_type: AnswerType, rng: np.random.Generator
) -> Question:
    """Ten answers: most people agree, some use another word, and a few are wrong."""
    answers = [answer] * NUM_ANSWERS
    for i in range(NUM_ANSWERS):
        chance = rng.random()
        if chance < 0.1 and answer in SYNONYMS:
            answers[i] = SYNONYMS[answer]
        elif chance > 0.97:
            answers[i] = _mistaken(answer, rng)
    if answers.count(answer) <= NUM_ANSWERS // 2:
        answers = [answer] * NUM_ANSWERS
    return Question(text, answer, question_type, answer_type, tuple(answers))


def _mistaken(answer: str, rng: np.random.Generator) -> str:
    if answer in ("yes", "no"):
        return "no" if answer == "yes" else "yes"
    if answer.isdigit():
        numbers = [str(i + 1) for i in range(len(NUMBER_WORDS)) if str(i + 1) != answer]
        return numbers[int(rng.random() * len(numbers))]
    return _like(answer, rng)
