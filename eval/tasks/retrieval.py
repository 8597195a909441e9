"""Image-text retrieval: ITC over the whole gallery, then ITM for the top k of each query of both directions.

Work is divided by image. Ranks exchange text features and their rows of the ITC matrix as files in `work/`; the ITM
scores of an image's candidates are one line of the rank's log. For one image the candidates of both directions are
joined, so that its keys and values are projected once.

Shapes: N images, T texts, Q queries, E projection width, P image tokens.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.recall import top_k
from eval.official_files import SampleId
from eval.predictions import Entry, PredictionLog, batches_of_rank, finished
from eval.samples import RetrievalData
from eval.tasks.pictures import Ablation, load_batches, shown_images

if TYPE_CHECKING:
    from pipeline.models.inference import RetrievalModel

TEXTS_AT_ONCE = 128  # texts embedded, or matched with one image, in one call
Floats = NDArray[np.float32]


def rank_all(
    model: "RetrievalModel", data: RetrievalData, folder: Path, *, images: Ablation, seed: int, batch_size: int, k: int
) -> None:
    """Score what no rank has scored yet: this rank's part of it."""
    from tqdm import tqdm

    from pipeline.distributed import collectives, process_group

    rank, world_size = process_group.rank(), process_group.world_size()
    shown = shown_images(data.image_paths, images, seed)
    ids = list(data.image_paths)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    if not (work / "itc.npy").is_file():
        write_itc(model, data, shown, work, batch_size)
    done = finished(folder)
    collectives.barrier()
    candidates = candidates_by_image(np.load(work / "itc.npy", mmap_mode="r"), k)
    row = {image_id: place for place, image_id in enumerate(ids)}
    batches = batches_of_rank(ids, done, batch_size, rank, world_size)
    quiet = rank != 0 or not sys.stderr.isatty()
    with PredictionLog(folder, rank) as log, tqdm(total=sum(map(len, batches)), disable=quiet, unit="image") as bar:
        for batch, pixels_B3SS in zip(batches, load_batches(batches, shown, model.image_size_px), strict=True):
            for image_id, frozen_PI in zip(batch, model.encode_images(pixels_B3SS), strict=True):
                bar.update()
                if image_id in done:
                    continue
                # Texts of like length together, so that little of a call is padding.
                texts = sorted(candidates[row[image_id]], key=lambda text: len(data.texts[text].split()))
                scores: list[float] = []
                for start in range(0, len(texts), TEXTS_AT_ONCE):
                    part = [data.texts[text] for text in texts[start : start + TEXTS_AT_ONCE]]
                    scores += model.match_logits(frozen_PI, part).float().cpu().tolist()
                log.append([{"id": image_id, "texts": texts, "itm": scores}])


def write_itc(
    model: "RetrievalModel", data: RetrievalData, shown: dict[SampleId, Path], work: Path, batch_size: int
) -> None:
    """Embed the gallery, each rank its part, and leave the cosines of all pairs in itc.npy: [N, T] fp32."""
    import torch

    from pipeline.distributed import collectives, process_group

    rank, world_size = process_group.rank(), process_group.world_size()
    text_batches = [data.texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(data.texts), TEXTS_AT_ONCE)]
    own_texts = [model.embed_texts(batch).float().cpu().numpy() for batch in text_batches[rank::world_size]]
    _save(work / f"texts.rank{rank}.npy", own_texts)
    collectives.barrier()
    text_TE = torch.from_numpy(_interleave(work, "texts", TEXTS_AT_ONCE, len(data.texts), world_size))

    image_batches = batches_of_rank(list(data.image_paths), {}, batch_size, rank, world_size)
    rows = []
    for pixels_B3SS in load_batches(image_batches, shown, model.image_size_px):
        image_BQE = model.embed_images(model.encode_images(pixels_B3SS)).float()
        text_TE = text_TE.to(image_BQE.device)
        rows.append(torch.stack([(image_QE @ text_TE.T).amax(dim=0) for image_QE in image_BQE]).cpu().numpy())
    _save(work / f"itc.rank{rank}.npy", rows)
    collectives.barrier()
    if rank == 0:
        _save(work / "itc.npy", [_interleave(work, "itc", batch_size, len(data.image_paths), world_size)])
    collectives.barrier()


def _save(path: Path, blocks: list[Any]) -> None:
    """Blocks of rows as one .npy, whole or not there; an empty file for a rank that had none."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.save(file, np.concatenate(blocks) if blocks else np.zeros((0, 0), dtype=np.float32))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _interleave(work: Path, name: str, batch_size: int, total: int, world_size: int) -> Floats:
    """Put the ranks' rows back in order: batch b of the whole list was rank b mod W's next one."""
    parts = [np.load(work / f"{name}.rank{rank}.npy", mmap_mode="r") for rank in range(world_size)]
    joined = np.empty((total, parts[0].shape[1]), dtype=np.float32)
    taken = [0] * world_size
    for batch, start in enumerate(range(0, total, batch_size)):
        rank, size = batch % world_size, min(batch_size, total - start)
        joined[start : start + size] = parts[rank][taken[rank] : taken[rank] + size]
        taken[rank] += size
    return joined


def candidates_by_image(itc_NT: Floats, k: int) -> list[list[int]]:
    """For each image the texts to match it with: its own top k, and the texts that have it among their top k."""
    wanted: list[set[int]] = [set(top_k(row, k).tolist()) for row in itc_NT]
    for start in range(0, itc_NT.shape[1], TEXTS_AT_ONCE):
        columns = np.ascontiguousarray(itc_NT[:, start : start + TEXTS_AT_ONCE].T)
        for text, column in enumerate(columns, start=start):
            for image in top_k(column, k).tolist():
                wanted[image].add(text)
    return [sorted(texts) for texts in wanted]


def write_official(folder: Path, data: RetrievalData, entries: Iterable[Entry], k: int) -> Path:
    """scores.npz: itc and itm [N, T] (NaN where not matched), text_image [T], image_ids [N], k_test."""
    itc_NT = np.load(folder / "work" / "itc.npy", mmap_mode="r")
    itm_NT = np.full(itc_NT.shape, np.nan, dtype=np.float32)
    for row, entry in enumerate(entries):
        itm_NT[row, entry["texts"]] = entry["itm"]
    path = folder / "scores.npz"
    temporary = folder / "scores.tmp.npz"
    image_ids = np.array(list(data.image_paths))
    with temporary.open("wb") as file:
        np.savez(file, itc=itc_NT, itm=itm_NT, text_image=np.array(data.text_image), image_ids=image_ids, k_test=k)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    shutil.rmtree(folder / "work")
    return path
