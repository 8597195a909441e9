"""Images a second and core from shards, beside a plain data set of Pillow and torchvision over the same JPEGs.

    python -m tests.benchmarks.loader [--images 320] [--rounds 5] [--size 341 256]

One process, one thread, batches of 32, crops of 224 px. Ours: `SampleStream` and stage 1's collation; its pixels are
uint8, and the GPU normalises them. The other: one file a picture, RandomResizedCrop, flip, ToTensor, Normalize and
torch's own collation, as LAVIS loads a picture. They take turns; times are the process's own, medians.
"""

import argparse
import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.receipts import Receipt, write_receipt
from pipeline.config import Data
from pipeline.data.batch import collate_for_qformer
from pipeline.data.manifest import load_manifest
from pipeline.data.order import SampleOrder
from pipeline.data.stream import SampleStream
from pipeline.models.encoders import CLIP_MEAN, CLIP_STD
from tests.support.tiny_shards import tiny_sample, write_tiny_ledger
from tests.support.tiny_towers import word_tokenizer

SIZE_PX, BATCH, QUALITY = 224, 32, 95  # the quality that data_prep.download writes
SCALE = (0.5, 1.0)


def picture(number: int, width: int, height: int) -> bytes:
    """Coloured patches with grain: about as many bytes as a photograph of that size."""
    rng = np.random.default_rng(number)
    patches = rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    content = io.BytesIO()
    grained = (smooth + rng.normal(0, 5, (height, width, 1))).clip(0, 255).astype(np.uint8)
    Image.fromarray(grained).save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write_data(root: Path, count: int, width: int, height: int) -> None:
    """The same pictures as one shard with its manifest, and as files."""
    samples = []
    for number in range(count):
        jpeg, tiny = picture(number, width, height), tiny_sample(number, 0, 1, "human", "tiny")
        record = tiny.record | {"sha256": hashlib.sha256(jpeg).hexdigest()}
        samples.append(tiny._replace(jpeg=jpeg, record=record))
    tar = root / "shards" / "tiny-000-000000.tar"
    totals = tar_files.write_shard(tar, samples)
    write_tiny_ledger(tar, samples)
    receipt = Receipt("download", "t", "tiny", totals.sha256, totals.bytes, totals.samples, totals.captions, 0)
    write_receipt(tar, receipt)
    index_shards([root / "shards"], root / "train.json")
    (root / "files").mkdir()
    for sample in samples:
        (root / "files" / f"{sample.key}.jpg").write_bytes(sample.jpeg)


class PlainPictures(Dataset):  # type: ignore[type-arg]
    """A file a picture."""

    def __init__(self, folder: Path) -> None:
        from torchvision.transforms import (
            Compose,
            InterpolationMode,
            Normalize,
            RandomHorizontalFlip,
            RandomResizedCrop,
            ToTensor,
        )

        self.paths = sorted(folder.iterdir())
        crop = RandomResizedCrop(SIZE_PX, scale=SCALE, interpolation=InterpolationMode.BICUBIC)
        self.transform = Compose([crop, RandomHorizontalFlip(), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, str]:
        return self.transform(Image.open(self.paths[place]).convert("RGB")), self.paths[place].stem


def our_batches(root: Path) -> Iterable[Any]:
    manifest = load_manifest(root / "train.json")
    order = SampleOrder(manifest, 0, 64)
    stream: Any = SampleStream(manifest, order, Data(manifest=root / "train.json", crop_scale=SCALE), SIZE_PX)
    places = [(0, position) for position in range(order.samples)]
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    return DataLoader(stream, batch_size=BATCH, sampler=places, collate_fn=collate_for_qformer(tokenizer, 32))


def seconds(batches: Iterable[Any]) -> float:
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=[341, 256], metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_data(root, options.images, *options.size)
        plain = DataLoader(PlainPictures(root / "files"), batch_size=BATCH, shuffle=True)
        ways: dict[str, Callable[[], Iterable[Any]]] = {"ours": lambda: our_batches(root), "plain": lambda: plain}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(options.rounds + 1):
            for way, batches in ways.items():
                taken = seconds(batches())
                times[way] += [taken] if turn else []  # the first turn warms up
    width, height = options.size
    print(f"{options.images} JPEGs of {width} x {height} px, quality {QUALITY}")
    for way, each in times.items():
        ratio = median(each) / median(times["ours"])
        print(f"  {way:6} {options.images / median(each):6.0f} images a second and core, {ratio:.2f} times our time")


if __name__ == "__main__":
    main()
