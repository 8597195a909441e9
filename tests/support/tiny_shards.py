"""Tiny real shards, built in code: small JPEGs of one colour and its shade, captions that say which."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.ledger import Entry, ledger_path, write_ledger
from data_prep.shards.receipts import Receipt, write_receipt
from data_prep.shards.tar_files import Sample

COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 200), "yellow": (220, 200, 40)}
SHADES = {"dark": 0.5, "light": 1.2}


def tiny_jpeg(rng: np.random.Generator, colour: str, shade: str, width_px: int, height_px: int) -> bytes:
    """A noisy picture of one colour."""
    mean = np.array(COLOURS[colour]) * SHADES[shade]
    pixels = rng.normal(mean, 12, size=(height_px, width_px, 3)).clip(0, 255).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


def tiny_sample(number: int, seed: int, captions_per_sample: int, caption_source: str, source: str) -> Sample:
    """Sample `number`: a pure function of its arguments."""
    rng = np.random.default_rng((seed, number))
    colour, shade = str(rng.choice(list(COLOURS))), str(rng.choice(list(SHADES)))
    width_px, height_px = (int(side) for side in rng.integers(32, 65, size=2))
    jpeg = tiny_jpeg(rng, colour, shade, width_px, height_px)
    url = f"http://example.invalid/{seed}/{number}.jpg"
    identity = hashlib.sha256(f"{url}\n{number}".encode()).hexdigest()
    key = f"{source}_{identity[:16]}"
    wordings = [f"a {shade} {colour} picture", f"the colour is {shade} {colour}", f"{colour}, {shade}, number {number}"]
    captions = [wordings[position % 3] + " again" * (position // 3) for position in range(captions_per_sample)]
    record = {
        "key": key,
        "captions": captions,
        "scores": [None] * captions_per_sample,
        "sources": [caption_source] * captions_per_sample,
        "width": width_px,
        "height": height_px,
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "url": url,
        "source": source,
        "run": "tiny",
    }
    return Sample(key, jpeg, record)


def tiny_question_sample(number: int, seed: int, questions_per_sample: int, source: str) -> Sample:
    """The picture of `tiny_sample`, without captions, but with questions of ten answers each."""
    sample = tiny_sample(number, seed, 1, "human", source)
    shade, colour = sample.record["captions"][0].split()[1:3]
    asked = [("Which colour is it?", {colour: 8, "grey": 2}), ("Is it dark?", {"yes" if shade == "dark" else "no": 10})]
    questions = [
        {"id": 1000 * number + place, "question": asked[place % 2][0], "answers": asked[place % 2][1]}
        for place in range(questions_per_sample)
    ]
    without = {name: list[object]() for name in ("captions", "scores", "sources")}
    record = sample.record | without | {"questions": questions, "question_set": "vqav2_train2014"}
    return sample._replace(record=record)


def write_tiny_ledger(tar: Path, samples: list[Sample]) -> None:
    """A ledger that tells of the samples of `tar`, all of them kept."""
    entries = [
        Entry(row, each.record["url"], caption, "kept", None, each.key, None, each.record["sha256"])
        for row, each in enumerate(samples)
        for caption in ("".join(each.record["captions"][:1]).encode("utf-8", "replace").decode(),)
    ]
    write_ledger(ledger_path(tar), entries)


def write_samples(tar: Path, samples: list[Sample], seed: int = 0) -> None:
    """A finished shard of these samples, with its ledger and its receipt."""
    totals = tar_files.write_shard(tar, samples)
    write_tiny_ledger(tar, samples)
    told = (totals.sha256, totals.bytes, totals.samples, totals.captions, seed)
    counts = {"questions": totals.questions, "question_sets": totals.question_sets}
    write_receipt(tar, Receipt("download", f"table-{seed}", "tiny", *told, **counts))


def write_tiny_shards(
    folder: Path,
    num_samples: int,
    seed: int = 0,
    *,
    samples_per_shard: int = 16,
    captions_per_sample: int = 1,
    caption_source: str = "web",
    source: str = "tiny",
    questions_per_sample: int = 0,
) -> list[Path]:
    """Finished shards as `data_prep.download` would leave them; returns the tars in order.

    With `questions_per_sample` they are shards of questions, without captions.
    """
    tars = []
    for position, start in enumerate(range(0, num_samples, samples_per_shard)):
        numbers = range(start, min(start + samples_per_shard, num_samples))
        tar = folder / f"{source}-000-{position:06d}.tar"
        if questions_per_sample:
            samples = [tiny_question_sample(number, seed, questions_per_sample, source) for number in numbers]
        else:
            samples = [tiny_sample(number, seed, captions_per_sample, caption_source, source) for number in numbers]
        write_samples(tar, samples, seed)
        tars.append(tar)
    return tars


def tiny_manifest(
    folder: Path, num_samples: int, seed: int = 0, *, samples_per_shard: int = 16, captions_per_sample: int = 2
) -> Path:
    """`folder`/shards with human captions, and the manifest over them; returns `folder`/train.json."""
    shards, manifest = folder / "shards", folder / "train.json"
    write_tiny_shards(
        shards,
        num_samples,
        seed,
        samples_per_shard=samples_per_shard,
        captions_per_sample=captions_per_sample,
        caption_source="human",
    )
    index_shards([shards], manifest)
    return manifest
