"""Writes captions of drawn scenes: true, in lower case, with varied grammar and detail."""

from collections.abc import Sequence

import numpy as np

from data_prep.miniature.scenes import Scene, Thing

SIZE_WORDS = {"small": "small", "little": "small", "big": "big", "large": "big"}
RELATION_WORDS = {
    "left of": "left",
    "to the left of": "left",
    "right of": "right",
    "to the right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
}
NUMBER_WORDS = ("one", "two", "three")
LEADS = ("a photo of", "there is", "this is")
MAX_WORDS = 16
"""The most words of a caption of `describe`. With a captioner's start token and a prompt of four words it fits into 20
tokens."""
RELATED_SHARE = 0.15
"""The share of captions of several things that say where one is relative to another. It is small, because a captioner
of this size only guesses these words."""
CLEAR = 0.1
"""The smallest distance of two centres along an axis at which a relation along that axis is true."""


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """One true caption of 3 to 16 lower-case words; the grammar, the named things and the detail vary."""
    while True:
        caption = _draw_caption(scene, rng)
        if len(caption.split()) <= MAX_WORDS:
            return caption


def describe_fully(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption that names each thing with size and colour, the background, and the relation of two things."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    body = _list_things(things, rng, relate=len(things) == 2 or rng.random() < 0.5, detail=1.0)
    return _with_setting(body, scene.background, rng)


def noun_phrase(thing: Thing, rng: np.random.Generator, detail: float = 0.55) -> str:
    """`a [size] colour shape`; the size is named with probability `detail`."""
    words = [thing.colour, thing.shape]
    if rng.random() < detail:
        words.insert(0, _size_word(thing.size, rng))
    return with_article(" ".join(words))


def with_article(words: str) -> str:
    """The words after `a`, or `an` before a vowel."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def holds(relation: str, a: Thing, b: Thing) -> bool:
    """Whether a is clearly left of, right of, above or below b."""
    shift = {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
    return shift > CLEAR


def _size_word(size: str, rng: np.random.Generator) -> str:
    if size == "small":
        return "small" if rng.random() < 0.7 else "little"
    return "big" if rng.random() < 0.7 else "large"


def _relation_words(a: Thing, b: Thing, rng: np.random.Generator) -> str:
    options = [words for words, relation in RELATION_WORDS.items() if holds(relation, a, b)]
    return options[int(rng.random() * len(options))]


def _list_things(things: Sequence[Thing], rng: np.random.Generator, *, relate: bool, detail: float) -> str:
    nouns = [noun_phrase(thing, rng, detail) for thing in things]
    if relate and len(things) > 1:
        middle = "is " if len(things) == 2 and rng.random() < 0.1 else ""
        nouns[:2] = [f"{nouns[0]} {middle}{_relation_words(things[0], things[1], rng)} {nouns[1]}"]
    return " and ".join(nouns)


def _with_setting(body: str, background: str, rng: np.random.Generator) -> str:
    form = rng.random()
    if form < 0.15:
        return f"a {background} background with {body}"
    return f"{body} {'on' if form < 0.8 else 'with'} a {background} background"


def _draw_caption(scene: Scene, rng: np.random.Generator) -> str:
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    form, number = rng.random(), len(things)
    if form < 0.07 and number > 1:
        body = f"{NUMBER_WORDS[number - 1]} {'things' if rng.random() < 0.5 else 'shapes'}"
        if rng.random() < 0.7:
            body += f" including {noun_phrase(things[0], rng)}"
    elif form < 0.17:
        body = noun_phrase(things[0], rng)
    elif form < 0.25 and number == 3:
        body = _list_things(things[:2], rng, relate=rng.random() < RELATED_SHARE, detail=0.55)
    else:
        body = _list_things(things, rng, relate=rng.random() < RELATED_SHARE, detail=0.55)
    if rng.random() < 0.1 and " is " not in body:
        lead = LEADS[int(rng.random() * len(LEADS))]
        body = f"{'there are' if lead == 'there is' and form < 0.07 and number > 1 else lead} {body}"
        return f"{body} on a {scene.background} background" if rng.random() < 0.35 else body
    return _with_setting(body, scene.background, rng) if rng.random() < 0.4 else body
