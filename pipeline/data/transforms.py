"""Pictures to pixels: decode, crop, flip, resize. Always uint8 RGB; the vision tower normalises on its device."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.pictures.decoding import opened, plain, read_picture

TURNING = frozenset({"exif", "xmp", "XML:com.adobe.xmp"})  # metadata that may hold an orientation
ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a random resized crop, as torchvision's default


def decode(picture: bytes | Path | Image.Image, name: str = "a picture") -> Tensor:
    """uint8 [3, H, W] RGB, upright, transparency on white. Raises ValueError, with the path or `name`, when it is no
    readable picture."""
    try:
        if isinstance(picture, Image.Image):
            return _pixels_of(picture)
        content = picture if isinstance(picture, bytes) else read_picture(picture)
        with opened(content) as image:
            pixels_3HW = _decode_jpeg(content) if _is_plain(image) else None
            return _pixels_of(image) if pixels_3HW is None else pixels_3HW
    except Exception as error:  # a damaged file makes Pillow raise many kinds, struct.error and TypeError among them
        raise ValueError(
            f"{picture if isinstance(picture, Path) else name}: is not readable as a picture ({error})"
        ) from error


def _pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(plain(image))).permute(2, 0, 1)


def _is_plain(image: Image.Image) -> bool:
    """A JPEG of one or three channels without metadata that may turn it: the pictures of shards, nearly all."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and not TURNING.intersection(image.info)


def _decode_jpeg(picture: bytes) -> Tensor | None:
    """The same pixels as Pillow's, in two thirds of its time. None for a damaged picture."""
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        pixels_3HW: Tensor = decode_jpeg(torch.frombuffer(bytearray(picture), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return None
    return pixels_3HW


def _resize(pixels_3HW: Tensor, size_px: int) -> Tensor:
    """The same pixels as torchvision's resize, which calls it after checks of a tenth of its time."""
    size = (size_px, size_px)
    resized: Tensor = functional.interpolate(pixels_3HW[None], size, mode="bicubic", antialias=True)[0]
    return resized


def load_evaluation_pixels(picture: bytes | Path | Image.Image, size_px: int, name: str = "a picture") -> Tensor:
    """The whole picture as a square, bicubic: uint8 [3, S, S]. Raises ValueError as `decode` does."""
    return _resize(decode(picture, name), size_px)


def random_resized_crop(
    pixels_3HW: Tensor, size_px: int, scale: tuple[float, float], flip: bool, rng: random.Random
) -> Tensor:
    """A crop of random area and aspect, flipped half the time if `flip`, as a square: uint8 [3, S, S]."""
    _, height, width = pixels_3HW.shape
    crop_height, crop_width = height, width
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ASPECT_RATIOS[0]), np.log(ASPECT_RATIOS[1])))
        wanted_width, wanted_height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < wanted_width <= width and 0 < wanted_height <= height:
            crop_height, crop_width = wanted_height, wanted_width
            break
    top, left = rng.randint(0, height - crop_height), rng.randint(0, width - crop_width)
    cropped = _resize(pixels_3HW[:, top : top + crop_height, left : left + crop_width], size_px)
    return cropped.flip(-1) if flip and rng.random() < 0.5 else cropped
