"""Generated text for samples (captions, answers), batch by batch, each appended to this rank's log as it is done."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eval.official_files import SampleId
from eval.predictions import PredictionLog, batches_of_rank, finished
from eval.samples import TaskData
from eval.tasks.pictures import Ablation, load_batches, shown_images

if TYPE_CHECKING:
    from pipeline.models.inference import LanguageModel
    from pipeline.models.language import Decoding


def generate_all(
    model: "LanguageModel",
    data: TaskData,
    prompts: Mapping[SampleId, str],
    decoding: "Decoding",
    folder: Path,
    *,
    images: Ablation,
    seed: int,
    batch_size: int,
) -> None:
    """Predict what no rank has predicted yet: this rank's part of it."""
    from tqdm import tqdm

    from pipeline.distributed import collectives, process_group

    rank, world_size = process_group.rank(), process_group.world_size()
    shown = shown_images(data.image_paths, images, seed)
    image_of = {sample.id: sample.image_id for sample in data.samples}
    done = finished(folder)
    collectives.barrier()  # every rank has read what is done before any adds to it
    batches = [
        [each for each in batch if each not in done]
        for batch in batches_of_rank(list(image_of), done, batch_size, rank, world_size)
    ]
    pixels = (
        iter([None] * len(batches))
        if images == "none"
        else load_batches([[image_of[each] for each in batch] for batch in batches], shown, model.image_size_px)
    )
    quiet = rank != 0 or not sys.stderr.isatty()
    with PredictionLog(folder, rank) as log, tqdm(total=sum(map(len, batches)), disable=quiet, unit="sample") as bar:
        for batch, pixels_B3SS in zip(batches, pixels, strict=True):
            texts = model.generate(pixels_B3SS, [prompts[each] for each in batch], decoding)
            log.append({"id": each, "text": text.strip()} for each, text in zip(batch, texts, strict=True))
            bar.update(len(batch))
