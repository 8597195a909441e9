"""Writes alt-texts like those of the web: about 60% are true; the others are wrong, junk, almost empty or
boilerplate."""

from typing import Literal

import numpy as np

from data_prep.miniature.language import describe, is_true
from data_prep.miniature.scenes import BACKGROUNDS, COMMON_COLOURS, COMMON_SHAPES, SIZES, Scene, draw_scene

AltKind = Literal["true", "wrong", "near_miss", "file_name", "near_empty", "boilerplate"]
SHARES: dict[AltKind, float] = {
    "true": 0.60,
    "wrong": 0.18,
    "near_miss": 0.05,
    "file_name": 0.07,
    "near_empty": 0.04,
    "boilerplate": 0.06,
}
NEAR_EMPTY = (".", "-", "img", "photo", "pic 1", "image", "untitled", "...")
BOILERPLATE = (
    "click to enlarge",
    "stock photo - royalty free image, download now",
    "free shipping on all orders over $50",
    "image may contain: one or more shapes, indoor",
    "add to cart",
    "sorry, this image is no longer available",
    "share on facebook opens in a new window",
)
FILE_NAMES = ("IMG_{:04d}.jpg", "DSC{:05d}.JPG", "Screenshot-{:03d}.png", "wp-{:05d}-1024x768.jpg", "P10{:05d}.jpeg")
SWAPS = (COMMON_COLOURS, COMMON_SHAPES, SIZES, BACKGROUNDS)
"""Groups of words. A near miss replaces a word by another one of its group."""


def alt_text(scene: Scene, rng: np.random.Generator) -> tuple[str, AltKind]:
    """An alt-text for a picture of `scene`, and which kind it is. `wrong` and `near_miss` are checked to be false."""
    kind: AltKind = list(SHARES)[int(rng.choice(len(SHARES), p=list(SHARES.values())))]
    if kind == "true":
        return describe(scene, rng), kind
    if kind == "wrong":
        return _wrong(scene, rng), kind
    if kind == "near_miss":
        return _near_miss(scene, rng), kind
    if kind == "file_name":
        return _pick(rng, FILE_NAMES).format(int(rng.integers(10_000))), kind
    return _pick(rng, NEAR_EMPTY if kind == "near_empty" else BOILERPLATE), kind


def _wrong(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is true of another scene and false of this one."""
    while True:
        caption = describe(draw_scene(rng, held_out="never"), rng)
        if not is_true(caption, scene):
            return caption


def _near_miss(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption in which one word is replaced by another of its group, which makes it false."""
    for _ in range(50):
        words = describe(scene, rng).split()
        places = [(i, kind) for i, word in enumerate(words) for kind in SWAPS if word in kind]
        if not places:
            continue
        place, kind = places[int(rng.integers(len(places)))]
        words[place] = _pick(rng, tuple(word for word in kind if word != words[place]))
        caption = " ".join(words)
        if not is_true(caption, scene):
            return caption
    return _wrong(scene, rng)


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
