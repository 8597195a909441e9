"""Makes the candidate captions of images: the web captions and the captioner's, each scored by the ranker."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from data_prep.captioning.captioner import Captioner
from data_prep.captioning.ranker import Ranker
from data_prep.captioning.selection import Candidate, normalise
from data_prep.shards.tar_files import Sample

if TYPE_CHECKING:
    import torch
    from PIL import Image

WINDOW = 64
"""Images in memory at a time. It is fixed, like the ranker's batch, so that scores do not depend on --batch-size."""
RANKER_BATCH = 32
SCORE_DECIMALS = 6
"""Scores are rounded to this many decimals, because the last bits of float32 depend on the other members of a batch.
Four decimals were up to 5e-5 away from CLIPModel's scores; a test allows 1e-5."""
MAX_PIXELS = 40_000_000
"""A picture with more pixels is not decoded: shards hold small pictures."""
MAX_ASPECT = 64
"""The longer side divided by the shorter. A longer picture is not decoded: the ranker scales the short side up."""


def make_candidates(
    samples: Sequence[Sample], captioner: Captioner, ranker: Ranker, *, batch_size: int, num_threads: int
) -> Iterator[tuple[Sample, list[Candidate] | None]]:
    """Each sample with its candidates, in order; None for a picture that cannot be decoded.

    Threads decode and preprocess the next window of images while the models work on this one.
    """

    def prepare(sample: Sample) -> "tuple[torch.Tensor, torch.Tensor] | None":
        return _preprocess(sample, captioner, ranker)

    windows = [samples[start : start + WINDOW] for start in range(0, len(samples), WINDOW)]
    with ThreadPoolExecutor(num_threads) as pool:
        upcoming = [pool.submit(prepare, sample) for sample in windows[0]] if windows else []
        for number, window in enumerate(windows):
            ready = [future.result() for future in upcoming]
            following = windows[number + 1] if number + 1 < len(windows) else []
            upcoming = [pool.submit(prepare, sample) for sample in following]
            good = [(sample, pixels) for sample, pixels in zip(window, ready, strict=True) if pixels is not None]
            found = _window_candidates(good, captioner, ranker, batch_size)
            for sample, pixels in zip(window, ready, strict=True):
                yield sample, None if pixels is None else found[sample.key]


def _preprocess(sample: Sample, captioner: Captioner, ranker: Ranker) -> "tuple[torch.Tensor, torch.Tensor] | None":
    """The captioner's and the ranker's pixels, or None when the picture cannot be decoded."""
    image = decode(sample.jpeg)
    return None if image is None else (captioner.preprocess(image), ranker.preprocess(image))


def decode(jpeg: bytes) -> "Image.Image | None":
    """The RGB picture, or None when it cannot be decoded."""
    from pipeline.pictures.decoding import opened, plain

    try:
        with opened(jpeg, MAX_PIXELS) as image:
            return None if max(image.size) > MAX_ASPECT * min(image.size) else plain(image)
    except Exception:  # decoders raise many kinds of errors on damaged pictures; the receipt counts each
        return None


def _window_candidates(
    window: "list[tuple[Sample, tuple[torch.Tensor, torch.Tensor]]]",
    captioner: Captioner,
    ranker: Ranker,
    batch_size: int,
) -> dict[str, list[Candidate]]:
    import torch

    captions: list[list[tuple[str, str]]] = []
    for start in range(0, len(window), batch_size):
        batch = window[start : start + batch_size]
        written = captioner.caption(
            [sample.key for sample, _ in batch], torch.stack([pixels[0] for _, pixels in batch])
        )
        for (sample, _), synthetic in zip(batch, written, strict=True):
            web = [(normalise(each), "web") for each in sample.record["captions"]]
            captions.append(web + [(normalise(each), "synthetic") for each in synthetic])
    scores: list[dict[str, float]] = []
    for start in range(0, len(window), RANKER_BATCH):
        wordings = [[text for text, _ in each if text] for each in captions[start : start + RANKER_BATCH]]
        pixels = torch.stack([pair[1] for _, pair in window[start : start + RANKER_BATCH]])
        for texts, cosines in zip(wordings, ranker.score(pixels, wordings), strict=True):
            scores.append({text: round(cosine, SCORE_DECIMALS) for text, cosine in zip(texts, cosines, strict=True)})
    return {
        sample.key: [
            Candidate(position, text, source, score.get(text))  # type: ignore[arg-type]  # source: a str of two
            for position, (text, source) in enumerate(each)
        ]
        for (sample, _), each, score in zip(window, captions, scores, strict=True)
    }
