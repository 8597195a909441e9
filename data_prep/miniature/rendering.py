"""Draws a scene as a picture: antialiased shapes in uneven light, with varied colours and sensor noise."""

import numpy as np
from numpy.typing import NDArray

from data_prep.miniature.scenes import RADIUS, Scene, Thing

RGB = {
    "red": (214, 34, 40),
    "orange": (246, 140, 24),
    "yellow": (248, 224, 48),
    "green": (36, 156, 60),
    "blue": (36, 76, 208),
    "purple": (128, 44, 164),
    "pink": (250, 144, 196),
    "cyan": (40, 206, 222),
    "white": (236, 236, 234),
    "black": (24, 24, 26),
    "grey": (132, 132, 134),
    "brown": (116, 78, 46),
}
COLOUR_JITTER = 10.0
NOISE_STD = (2.0, 8.0)
"""The lowest and highest standard deviation of the sensor noise, of 255; each picture draws one between them."""
LIGHT = 0.12
"""The largest relative change of brightness between the middle of the picture and an edge."""
TILT = 0.07
"""Largest rotation of a thing, in radians."""

Plane = NDArray[np.float32]


def render(scene: Scene, width_px: int, height_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene as uint8 [height_px, width_px, 3]. Things keep their proportions at any aspect of the picture."""
    if min(width_px, height_px) < 16:
        raise ValueError(f"picture of {width_px} x {height_px} px: both sides must have at least 16 px")
    canvas = np.empty((height_px, width_px, 3), np.float32)
    canvas[:] = _jittered(scene.background, rng)
    for thing in scene.things:
        _paint(canvas, thing, rng)
    slope_x, slope_y = (rng.random(2) * 2 - 1) * LIGHT
    light = (
        1.0
        + slope_x * np.linspace(-1, 1, width_px, dtype=np.float32)[None, :]
        + slope_y * np.linspace(-1, 1, height_px, dtype=np.float32)[:, None]
    )
    canvas *= light.astype(np.float32)[:, :, None]
    noise_std = np.float32(NOISE_STD[0] + rng.random() * (NOISE_STD[1] - NOISE_STD[0]))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * noise_std
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _jittered(colour: str, rng: np.random.Generator) -> NDArray[np.float32]:
    return (np.array(RGB[colour]) + (rng.random(3) * 2 - 1) * COLOUR_JITTER).astype(np.float32)


def _paint(canvas: NDArray[np.float32], thing: Thing, rng: np.random.Generator) -> None:
    """Blend one thing into the canvas, in place, by the share of each pixel that it covers."""
    height_px, width_px, _ = canvas.shape
    radius_px = RADIUS[thing.size] * min(width_px, height_px) * (0.95 + 0.1 * rng.random())
    centre_x, centre_y = thing.x * width_px, thing.y * height_px
    reach = radius_px * 1.15
    left, top = max(0, int(centre_x - reach)), max(0, int(centre_y - reach))
    right, bottom = min(width_px, int(centre_x + reach) + 1), min(height_px, int(centre_y + reach) + 1)
    fine = 3 if radius_px < 40 else 2
    x = (left + (np.arange((right - left) * fine, dtype=np.float32) + 0.5) / fine - centre_x)[None, :] / radius_px
    y = (top + (np.arange((bottom - top) * fine, dtype=np.float32) + 0.5) / fine - centre_y)[:, None] / radius_px
    angle = (rng.random() * 2 - 1) * TILT
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    inside = _inside(thing.shape, cosine * x + sine * y, cosine * y - sine * x).astype(np.float32)
    coverage = inside.reshape(bottom - top, fine, right - left, fine).mean(axis=(1, 3))[:, :, None]
    patch = canvas[top:bottom, left:right]
    patch += coverage * (_jittered(thing.colour, rng) - patch)


def _inside(shape: str, x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Which points are inside the shape, which has a radius of about 1 around the origin; y points down."""
    inside: NDArray[np.bool_]
    if shape == "circle":
        inside = x * x + y * y < 0.92
    elif shape == "square":
        inside = np.maximum(np.abs(x), np.abs(y)) < 0.84
    elif shape == "triangle":
        inside = (y < 0.75) & (np.abs(x) * 1.75 - y < 0.95)
    elif shape == "star":
        turn = 2 * np.pi / 5
        angle = np.abs((np.arctan2(x, -y) + np.pi * 11) % turn - turn / 2) - turn / 2
        angle = np.abs(angle)
        inside = np.hypot(x, y) * (np.cos(np.pi / 5 - angle) + np.sin(np.pi / 5 - angle) * 1.9) < 0.95
    elif shape == "cross":
        inside = (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)
    elif shape == "ring":
        inside = np.abs(np.hypot(x, y) - 0.74) < 0.23
    elif shape == "heart":
        u, v = x * 1.2, -y * 1.15 + 0.1
        inside = (u * u + v * v - 0.9) ** 3 < 1.3 * u * u * v**3
    elif shape == "crescent":
        inside = (x * x + y * y < 0.95) & ((x - 0.45) ** 2 + (y + 0.1) ** 2 > 0.55)
    else:
        raise ValueError(f"shape {shape!r}: is not a shape of the drawn world")
    return inside
