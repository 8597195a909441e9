"""Draws pictures to train vision towers on, in groups that share words but not meaning."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.miniature.rendering import render
from data_prep.miniature.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADIUS,
    SHAPES,
    SIZES,
    HeldOut,
    Scene,
    Thing,
    draw_scene,
)

GROUP = 4
"""The size of a group: a scene and three variants of it, next to each other."""
RENDER_PX = (64, 120)
"""The smallest and largest shorter side of a picture before it is resized to the square of the tower."""
MAX_ASPECT = 1.6


@dataclass(frozen=True)
class Drawings:
    """Scenes [N] and their pictures uint8 [N, 3, S, S]; the scenes of each GROUP differ from its first in one
    respect."""

    scenes: list[Scene]
    pixels: NDArray[np.uint8]


def draw_groups(num_groups: int, size_px: int, rng: np.random.Generator) -> Drawings:
    """Draw `num_groups` groups; one in four has held-out words, because real towers know such words."""
    scenes: list[Scene] = []
    for _ in range(num_groups):
        scenes += scene_group(rng)
    pixels = np.stack([square_picture(scene, size_px, rng) for scene in scenes])
    return Drawings(scenes, pixels)


def scene_group(rng: np.random.Generator) -> list[Scene]:
    """A scene and three variants with most of its words: looks or places are swapped, or one word is changed."""
    domain: tuple[HeldOut, ...] = ("never", "never", "never", "never", "never", "never", "some", "all")
    scene = draw_scene(rng, held_out=domain[int(rng.random() * len(domain))])
    group = [scene]
    while len(group) < GROUP:
        variant = _vary(scene, rng)
        if variant not in group:
            group.append(variant)
    return group


def square_picture(scene: Scene, size_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [3, S, S]: drawn at a random size and aspect ratio, then resized to a square, as image processors do."""
    from PIL import Image

    short = int(rng.integers(RENDER_PX[0], RENDER_PX[1] + 1))
    long = round(short * (1 + (MAX_ASPECT - 1) * rng.random() ** 1.5))
    width, height = (short, long) if rng.random() < 0.4 else (long, short)
    image = Image.fromarray(render(scene, width, height, rng)).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1).copy()


def mirrored(scene: Scene) -> Scene:
    """The scene with left and right exchanged."""
    return replace(scene, things=tuple(replace(thing, x=1 - thing.x) for thing in scene.things))


def patch_labels(scene: Scene, grid: int) -> NDArray[np.int64]:
    """[grid * grid, 3]: index of shape, colour and size of the thing that covers the middle of each patch; -100: none.

    A thing has a radius of at least half a patch here, so that some patch has it."""
    labels = np.full((grid * grid, 3), -100, np.int64)
    centres = (np.arange(grid) + 0.5) / grid
    y, x = (plane.reshape(-1) for plane in np.meshgrid(centres, centres, indexing="ij"))
    for thing in scene.things:
        distance = np.hypot(x - thing.x, y - thing.y)
        covered = distance < max(RADIUS[thing.size], 0.5 / grid)
        labels[covered] = (SHAPES.index(thing.shape), COLOURS.index(thing.colour), SIZES.index(thing.size))
    return labels


def batches(num_rows: int, batch_size: int, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
    """Row indices without end, in a new order in each pass; groups stay whole."""
    while True:
        order = rng.permutation(num_rows // GROUP)
        rows = (order[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield rows[start : start + batch_size]


def _vary(scene: Scene, rng: np.random.Generator) -> Scene:
    things = list(scene.things)
    which, first = rng.random(), int(rng.random() * len(things))
    thing = things[first]
    if len(things) > 1 and which < 0.6:
        second = (first + 1) % len(things)
        other = things[second]
        if which < 0.25:
            things[first], things[second] = _swap(thing, other, "colour")
        elif which < 0.5:
            things[first], things[second] = _swap(thing, other, "place")
        else:
            things[first], things[second] = _swap(thing, other, "size")
    elif which < 0.72:
        things[first] = replace(thing, colour=COLOURS[int(rng.random() * 6)])
    elif which < 0.84:
        things[first] = replace(thing, shape=SHAPES[int(rng.random() * 6)])
    elif which < 0.92:
        things[first] = replace(thing, size=SIZES[int(rng.random() * 2)])
    else:
        return replace(scene, background=BACKGROUNDS[int(rng.random() * len(BACKGROUNDS))])
    looks = {(each.shape, each.colour) for each in things}
    return replace(scene, things=tuple(things)) if len(looks) == len(things) else scene


def _swap(a: Thing, b: Thing, what: str) -> tuple[Thing, Thing]:
    if what == "place":
        return replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)
    if what == "size":
        return replace(a, size=b.size), replace(b, size=a.size)
    return replace(a, colour=b.colour), replace(b, colour=a.colour)
