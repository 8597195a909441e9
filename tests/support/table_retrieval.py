"""Retrieval whose features and match logits come from seeded tables, so that galleries of any size cost little.

What eval.tasks.retrieval divides, exchanges and writes is real; a picture is one pixel that says its number.
"""

import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.sets.captioned_images import DataSet
from eval.sets.samples import RetrievalData
from pipeline.tokens import Tokens

WIDTH = 8


class TableModel:
    """RetrievalModel's methods. Rounded features make ties; a match logit depends on picture and text alone."""

    stage = 1
    image_size_px = 1
    embedding_width = WIDTH

    def __init__(self, images: int, texts: int, levels: int) -> None:
        rng = np.random.default_rng(0)
        self.image_NE = torch.from_numpy(np.round(rng.random((images, WIDTH)) * levels).astype(np.float32))
        self.text_TE = torch.from_numpy(np.round(rng.random((texts, WIDTH)) * levels).astype(np.float32))

    def encode_images(self, pixels_B311: Tensor) -> Tensor:
        red, green, blue = pixels_B311.long().flatten(1).unbind(dim=1)
        return (red * 65536 + green * 256 + blue).float()[:, None]

    def embed_images(self, number_B1: Tensor) -> Tensor:
        return self.image_NE[number_B1.long()]

    def tokenise(self, texts: tuple[str, ...]) -> Tokens:
        ids_T1 = torch.tensor([[int(text)] for text in texts])
        return Tokens(ids_T1, torch.ones_like(ids_T1, dtype=torch.bool))

    def embed_texts(self, texts: Tokens) -> Tensor:
        return self.text_TE[texts.ids[:, 0]]

    def match_logits(self, number_1: Tensor, batches: list[Tokens]) -> Tensor:
        return ((int(number_1) * 31 + torch.cat([texts.ids[:, 0] for texts in batches])) % 17).float() / 4 - 2


def save_gallery(folder: Path, images: int, texts: int) -> RetrievalData:
    """One-pixel pictures, and texts that are numbers; text t belongs to image t mod N."""
    folder.mkdir()
    paths: dict[int | str, Path] = {}
    for number in range(images):
        paths[number] = folder / f"{number}.png"
        Image.new("RGB", (1, 1), (number // 65536, number // 256 % 256, number % 256)).save(paths[number])
    owners = tuple(text % images for text in range(texts))
    return RetrievalData(folder, DataSet("table", False), paths, tuple(map(str, range(texts))), owners)


def anonymous_mb() -> float:
    """Memory of this process that is no file's, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def rank_gallery(data: RetrievalData, folder: Path, levels: int, k: int, batch_size: int) -> float:
    """This rank's part of the whole ranking; rank 0 writes scores.npz. Returns the most memory it took, in MB."""
    from eval.tasks.predictions import merge
    from eval.tasks.retrieval import rank_all, write_official
    from pipeline.distributed import collectives, process_group

    torch.set_num_threads(1)
    model = TableModel(len(data.image_paths), len(data.texts), levels)
    before, most, done = anonymous_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous_mb() - before)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        rank_all(model, data, folder, images="own", seed=0, batch_size=batch_size, k=k)  # type: ignore[arg-type]
    finally:
        done.set()
        watcher.join()
    collectives.barrier()
    if process_group.rank() == 0:
        write_official(folder, data, merge(folder, list(data.image_paths)), k)
    return most
