"""JPEGs of a photo's size for parts that decode pictures, and shards of them."""

import hashlib
import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.receipts import Receipt, write_receipt
from data_prep.shards.tar_files import Sample

SAMPLES_A_SHARD = 256
TEXT = "a picture of the red green blue yellow dark light colour number question answer short photo"


def photo_jpeg(seed: int, width_px: int, height_px: int) -> bytes:
    """Smooth colours with grain: about as many bytes, and as much to decode, as a photo."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-12, 13, (height_px, width_px, 1), dtype=np.int16)
    content = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    return content.getvalue()


def photo_sample(number: int, width_px: int, height_px: int) -> Sample:
    """A picture with two captions of 6 to 20 words."""
    rng = np.random.default_rng((7, number))
    jpeg = photo_jpeg(number, width_px, height_px)
    captions = [" ".join(rng.choice(TEXT.split(), size=int(size))) for size in rng.integers(6, 21, size=2)]
    key = f"photo_{hashlib.sha256(str(number).encode()).hexdigest()[:16]}"
    record = {
        "key": key, "captions": captions, "scores": [None, None], "sources": ["web", "web"], "width": width_px,
        "height": height_px, "sha256": hashlib.sha256(jpeg).hexdigest(), "url": f"http://example.invalid/{number}.jpg",
        "source": "photos", "run": "gpu",
    }  # fmt: skip
    return Sample(key, jpeg, record)


def photos(count: int, width_px: int, height_px: int, processes: int) -> list[Sample]:
    sizes = [[width_px] * count, [height_px] * count]
    if processes == 1:
        return [photo_sample(number, width_px, height_px) for number in range(count)]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(photo_sample, range(count), *sizes, chunksize=32))


def photo_manifest(folder: Path, count: int, width_px: int, height_px: int, processes: int) -> Path:
    """Shards of such pictures, and the manifest over them."""
    from tests.support.tiny_shards import write_tiny_ledger

    samples, shards = photos(count, width_px, height_px, processes), folder / "shards"
    for position, start in enumerate(range(0, count, SAMPLES_A_SHARD)):
        part, tar = samples[start : start + SAMPLES_A_SHARD], shards / f"photos-000-{position:06d}.tar"
        totals = tar_files.write_shard(tar, part)
        write_tiny_ledger(tar, part)
        receipt = Receipt("download", "photos", "gpu", totals.sha256, totals.bytes, totals.samples, totals.captions, 0)
        write_receipt(tar, receipt)
    index_shards([shards], folder / "train.json")
    return folder / "train.json"
