"""Scenes of the drawn world: one to three coloured shapes on a background, and what is where.

Things stand clear of each other, so that "left of" or "above" has one answer: two things stand beside or over each
other, three take three of the four quarters. Sizes are radii in units of the picture's shorter side.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

COMMON_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COMMON_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
HELD_OUT_SHAPES = ("heart", "crescent")
HELD_OUT_COLOURS = ("pink", "cyan")

SHAPES = COMMON_SHAPES + HELD_OUT_SHAPES
COLOURS = COMMON_COLOURS + HELD_OUT_COLOURS
SIZES = ("small", "big")
BACKGROUNDS = ("white", "black", "grey", "brown")
HELD_OUT = frozenset(HELD_OUT_SHAPES + HELD_OUT_COLOURS)
"""Words that no caption data set but NoCaps' near and out domains has; frozen towers know them, as real ones do."""

RADIUS = {"small": 0.115, "big": 0.195}
"""Radius of a thing over the shorter side of the picture."""
SAME_SHAPE_SHARE = 0.15
"""How often a second thing may repeat the first one's shape (in another colour)."""

HeldOut = Literal["never", "some", "all"]


@dataclass(frozen=True)
class Thing:
    """One coloured shape; x and y are its centre in 0..1 from the top left."""

    shape: str
    colour: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one to three things, no two alike in shape and colour, on a background."""

    things: tuple[Thing, ...]
    background: str


def draw_scene(rng: np.random.Generator, *, held_out: HeldOut) -> Scene:
    """Draw a scene. `never`: common words only; `all`: each thing has a held-out shape or colour; `some`: two or
    three things, of which at least one has a held-out word and at least one has none."""
    if held_out not in ("never", "some", "all"):
        raise ValueError(f"held_out {held_out!r}: use 'never', 'some' or 'all'")
    number = 1 + int(np.searchsorted([0.25, 0.8], rng.random()))
    if held_out == "some":
        number = 2 + int(rng.random() < 0.3)
    novel = [held_out == "all"] * number
    if held_out == "some":
        novel[int(rng.integers(number))] = True
    looks: list[tuple[str, str]] = []
    for is_novel in novel:
        looks.append(_draw_look(rng, is_novel, looks))
    places = _draw_places(rng, number)
    things = tuple(
        Thing(shape, colour, SIZES[int(rng.random() < 0.5)], x, y)
        for (shape, colour), (x, y) in zip(looks, places, strict=True)
    )
    return Scene(things, _pick(rng, BACKGROUNDS))


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """The scene as plain JSON values."""
    return asdict(scene)


def scene_from_json(fields: dict[str, Any]) -> Scene:
    """The inverse of `scene_to_json`."""
    return Scene(tuple(Thing(**thing) for thing in fields["things"]), fields["background"])


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.random() * len(options))]


def _draw_look(rng: np.random.Generator, novel: bool, taken: list[tuple[str, str]]) -> tuple[str, str]:
    while True:
        which = rng.random()
        shape = _pick(rng, HELD_OUT_SHAPES if novel and which < 0.7 else COMMON_SHAPES)
        colour = _pick(rng, HELD_OUT_COLOURS if novel and not 0.4 < which < 0.7 else COMMON_COLOURS)
        repeats_shape = any(shape == other for other, _ in taken)
        if (shape, colour) in taken or (repeats_shape and rng.random() > SAME_SHAPE_SHARE):
            continue
        return shape, colour


def _draw_places(rng: np.random.Generator, number: int) -> list[tuple[float, float]]:
    def jitter(centre: float, spread: float) -> float:
        return round(centre + (rng.random() * 2 - 1) * spread, 4)

    if number == 1:
        return [(jitter(0.5, 0.2), jitter(0.5, 0.2))]
    if number == 2:
        level = jitter(0.5, 0.18)
        pair = [(jitter(0.27, 0.04), jitter(level, 0.04)), (jitter(0.73, 0.04), jitter(level, 0.04))]
        if rng.random() < 0.5:
            pair = [(y, x) for x, y in pair]
        return pair if rng.random() < 0.5 else pair[::-1]
    quarters = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)]
    return [(jitter(quarters[i][0], 0.04), jitter(quarters[i][1], 0.04)) for i in rng.permutation(4)[:number]]
