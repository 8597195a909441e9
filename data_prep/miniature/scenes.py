"""Draws scenes: one to three coloured shapes on a background, with their places.

Things are near the middle of the cells of a 4 x 4 grid. A small ViT with one patch for each of the 16 cells learns
their looks from tens of thousands of pictures, instead of millions. At least one cell is between two things. Two things
are in one row or column, three are on the corners of a square: so "left of" and "above" have clear answers.
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
"""Words that only NoCaps' near and out domains have, of all caption data. The frozen towers know them, as real ones
do."""

RADIUS = {"small": 0.1, "big": 0.14}
"""The radius of a thing, divided by the shorter side of the picture."""
GRID = 4
"""Cells along each side."""
JITTER = 0.015
"""The largest distance of a thing from the middle of its cell along each axis, divided by the side of the picture."""
SAME_SHAPE_SHARE = 0.15
"""How often another thing may have the shape of an earlier one (in another colour)."""

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
    """The content of a picture: one to three things, which differ in shape or colour, on a background."""

    things: tuple[Thing, ...]
    background: str


def draw_scene(rng: np.random.Generator, *, held_out: HeldOut) -> Scene:
    """Draw a scene. With `never` it has common words only. With `all` each thing has a held-out shape or colour. With
    `some` it has two or three things; at least one has a held-out word and at least one has none."""
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
    def place(column: int, row: int) -> tuple[float, float]:
        jitter = (rng.random(2) * 2 - 1) * JITTER
        return round((column + 0.5) / GRID + jitter[0], 4), round((row + 0.5) / GRID + jitter[1], 4)

    if number == 1:
        return [place(int(rng.integers(GRID)), int(rng.integers(GRID)))]
    if number == 2:
        level = int(rng.integers(GRID))
        ends = [(0, 2), (0, 3), (1, 3)][int(rng.integers(3))]
        beside = rng.random() < 0.5
        pair = [place(end, level) if beside else place(level, end) for end in ends]
        return pair if rng.random() < 0.5 else pair[::-1]
    column, row = int(rng.integers(2)), int(rng.integers(2))
    corners = [(column, row), (column + 2, row), (column, row + 2), (column + 2, row + 2)]
    return [place(*corners[i]) for i in rng.permutation(4)[:number]]
