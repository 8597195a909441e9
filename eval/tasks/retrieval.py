"""Image-text retrieval: ITC over the whole gallery, then ITM for the top k of each query of both directions.

Work is divided by image. Ranks exchange text features and their rows of the ITC matrix as files in `work/`. The ITM
scores of an image's candidates are one line of the rank's log. An image's candidates of both directions are matched
together: its keys and values are then projected once.

Shapes: N images, T texts, Q queries, E projection width, P image tokens.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eval.metrics.recall import Integers, top_k
from eval.sets.official_files import SampleId
from eval.sets.samples import RetrievalData
from eval.tasks.matrix_files import Floats, interleave, write_rows
from eval.tasks.pictures import Ablation, load_batches, shown_images
from eval.tasks.predictions import Entry, batches_of_rank
from pipeline.files import replacing
from pipeline.progress_line import ProgressLine

if TYPE_CHECKING:
    from pipeline.models.inference import RetrievalModel
    from pipeline.tokens import Tokens

ITC = Path("work/itc.npy")  # in the task's folder, until scores.npz is written
TEXTS_AT_ONCE = 128  # texts embedded, or matched with one image, in one call


def rank_all(
    model: "RetrievalModel", data: RetrievalData, folder: Path, *, images: Ablation, seed: int, batch_size: int, k: int
) -> None:
    """Score this rank's part of what no rank has scored yet. A fault of one rank ends all ranks."""
    from eval.tasks.job_log import job_log
    from pipeline.distributed import collectives, process_group

    rank, world_size = process_group.rank(), process_group.world_size()
    ids = list(data.image_paths)
    work = folder / "work"
    with job_log(folder) as (log, done):
        with collectives.together():
            shown = shown_images(data.image_paths, images, seed)
            work.mkdir(exist_ok=True)
            texts = Texts(model, data.texts)
        if collectives.any_rank(not (folder / ITC).is_file()):
            write_itc(model, data, texts, shown, work, batch_size)
        row = {image_id: place for place, image_id in enumerate(ids)}
        batches = batches_of_rank(ids, done, batch_size, rank, world_size)
        wanted = np.zeros(len(ids), dtype=bool)
        wanted[[row[each] for batch in batches for each in batch]] = True
        candidates = candidates_by_image(work, k, rank, world_size, wanted)
        line = ProgressLine("reranking", sum(map(len, batches)), "images", shown=rank == 0)
        with collectives.together(), line:
            for batch, pixels_B3SS in zip(batches, load_batches(batches, shown, model.image_size_px), strict=True):
                collectives.check_others()
                for image_id, frozen_PI in zip(batch, model.encode_images(pixels_B3SS), strict=True):
                    line.advance()
                    if image_id not in done:
                        chosen = texts.by_length(candidates[row[image_id]])
                        scores = model.match_logits(frozen_PI, texts.batches(chosen)).float().cpu().tolist()
                        log.append([{"id": image_id, "texts": chosen.tolist(), "itm": scores}])


class Texts:
    """The gallery's texts, tokenised once, and batches of them cut to their longest."""

    def __init__(self, model: "RetrievalModel", texts: Sequence[str]) -> None:
        self.tokens = model.tokenise(texts)
        self.lengths: Integers = self.tokens.is_token.sum(dim=1).cpu().numpy()

    def by_length(self, rows: Integers) -> Integers:
        """The rows sorted by length: a batch of texts of one length has little padding."""
        return rows[np.argsort(self.lengths[rows], kind="stable")]

    def batches(self, rows: Integers) -> list["Tokens"]:
        parts = (rows[start : start + TEXTS_AT_ONCE] for start in range(0, len(rows), TEXTS_AT_ONCE))
        return [self.tokens.rows(part.tolist(), int(self.lengths[part].max())) for part in parts]


def write_itc(
    model: "RetrievalModel",
    data: RetrievalData,
    texts: Texts,
    shown: dict[SampleId, Path],
    work: Path,
    batch_size: int,
) -> None:
    """Embed the gallery, each rank its part, and write the cosines of all pairs to itc.npy: [N, T] fp32.

    A rank holds the rows of one batch at a time, and the features of all texts [T, E].
    """
    import torch

    from pipeline.distributed import collectives, process_group

    rank, world_size = process_group.rank(), process_group.world_size()
    with collectives.together():
        own_batches = texts.batches(np.arange(len(data.texts)))[rank::world_size]

        def own_texts() -> Iterator[Floats]:
            for batch in ProgressLine("embedding", len(own_batches), "batches of texts", shown=rank == 0).follow(
                own_batches
            ):
                collectives.check_others()
                yield model.embed_texts(batch).float().cpu().numpy()

        write_rows(_part(work, "texts", rank, world_size), own_texts(), model.embedding_width)
    with collectives.together():
        if rank == 0:
            parts = [_part(work, "texts", each, world_size) for each in range(world_size)]
            interleave(parts, work / "texts.npy", TEXTS_AT_ONCE, len(data.texts))

    def rows() -> Iterator[Floats]:
        text_TE = torch.from_numpy(np.load(work / "texts.npy"))
        image_batches = batches_of_rank(list(data.image_paths), {}, batch_size, rank, world_size)
        line = ProgressLine("embedding", len(image_batches), "batches of images", shown=rank == 0)
        for pixels_B3SS in line.follow(load_batches(image_batches, shown, model.image_size_px)):
            collectives.check_others()
            image_BQE = model.embed_images(model.encode_images(pixels_B3SS)).float()
            text_TE = text_TE.to(image_BQE.device)
            yield torch.stack([(image_QE @ text_TE.T).amax(dim=0) for image_QE in image_BQE]).cpu().numpy()

    with collectives.together():
        write_rows(_part(work, "itc", rank, world_size), rows(), len(data.texts))
    with collectives.together():
        if rank == 0:
            parts = [_part(work, "itc", each, world_size) for each in range(world_size)]
            interleave(parts, work / "itc.npy", batch_size, len(data.image_paths))
            for part in parts:
                part.unlink()


def _part(work: Path, name: str, rank: int, world_size: int) -> Path:
    return work / f"{name}.rank{rank}of{world_size}.npy"


def candidates_by_image(
    work: Path, k: int, rank: int, world_size: int, wanted_N: NDArray[np.bool_]
) -> list[NDArray[np.int64]]:
    """For each image of `wanted_N` the texts to match it with: its own top k, and those that have it in their top k.

    Each rank searches its part of the rows and columns; the pairs of image and text are exchanged as files.
    """
    from pipeline.distributed import collectives

    with collectives.together(), ProgressLine("finding candidates", shown=rank == 0):
        itc_NT = np.load(work / "itc.npy", mmap_mode="r")
        images, texts = itc_NT.shape
        pairs = [np.empty((0, 2), dtype=np.int32)]
        for image in range(rank, images, world_size):
            collectives.check_others()
            pairs.append(_pairs(image, top_k(itc_NT[image], k)))
        for start in range(rank * TEXTS_AT_ONCE, texts, world_size * TEXTS_AT_ONCE):
            collectives.check_others()
            columns = np.ascontiguousarray(itc_NT[:, start : start + TEXTS_AT_ONCE].T)
            pairs += [_pairs(top_k(column, k), text) for text, column in enumerate(columns, start=start)]
        with replacing(_part(work, "candidates", rank, world_size)) as file:
            np.save(file, np.concatenate(pairs))
    with collectives.together():
        keys = [np.empty(0, dtype=np.int64)]  # image * T + text, of wanted images
        for each in range(world_size):
            found = np.load(_part(work, "candidates", each, world_size), mmap_mode="r")
            found = found[wanted_N[found[:, 0]]]
            keys.append(found[:, 0] * np.int64(texts) + found[:, 1])
        ordered = np.unique(np.concatenate(keys))
    return np.split(ordered % texts, np.searchsorted(ordered, texts * np.arange(1, images)))


def _pairs(images: Integers | int, texts: Integers | int) -> NDArray[np.int32]:
    return np.stack(np.broadcast_arrays(images, texts), axis=-1).astype(np.int32)


def write_official(folder: Path, data: RetrievalData, entries: Iterable[Entry], k: int) -> Path:
    """scores.npz: itc and itm [N, T] (NaN where not matched), text_image [T], image_ids [N], k_test."""
    itc_NT = np.load(folder / "work" / "itc.npy", mmap_mode="r")
    width = itc_NT.shape[1]
    write_rows(folder / "work" / "itm.npy", (_itm_row(entry, width) for entry in entries), width)
    itm_NT = np.load(folder / "work" / "itm.npy", mmap_mode="r")
    path = folder / "scores.npz"
    image_ids = np.array(list(data.image_paths))
    with replacing(path) as file:
        np.savez(file, itc=itc_NT, itm=itm_NT, text_image=np.array(data.text_image), image_ids=image_ids, k_test=k)
    shutil.rmtree(folder / "work")
    return path


def _itm_row(entry: Entry, width: int) -> Floats:
    row = np.full((1, width), np.nan, dtype=np.float32)
    row[0, entry["texts"]] = entry["itm"]
    return row
