"""Text for samples (captions, answers), batch by batch; each batch is appended to this rank's log.

The text is generated, or it is the best of a closed list of answers.

Questions about one picture are answered together, and a batch encodes each picture once: VQAv2 has five questions for a
picture, GQA thirty.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from eval.sets.official_files import SampleId
from eval.sets.samples import TaskData
from eval.tasks.pictures import Ablation, load_batches, shown_images
from eval.tasks.predictions import batches_of_rank
from pipeline.progress_line import ProgressLine

if TYPE_CHECKING:
    from pipeline.models.inference import LanguageModel
    from pipeline.models.language import Decoding
    from pipeline.models.ranking import Ranking


def generate_all(
    model: "LanguageModel",
    data: TaskData,
    prompts: Mapping[SampleId, str],
    questions: Mapping[SampleId, str] | None,
    how: "Decoding | Ranking",
    folder: Path,
    *,
    images: Ablation,
    seed: int,
    batch_size: int,
) -> None:
    """Predict this rank's part of what no rank has predicted yet. A fault of one rank ends all ranks.

    `how` is how to generate, or a list of answers to rank. `questions` are what a Q-Former reads that was trained to.
    """
    from eval.tasks.job_log import job_log
    from pipeline.distributed import collectives, process_group
    from pipeline.models.language import Decoding

    rank, world_size = process_group.rank(), process_group.world_size()
    shown = shown_images(data.image_paths, images, seed)
    image_of = {sample.id: sample.image_id for sample in data.samples}
    place = {image_id: number for number, image_id in enumerate(data.image_paths)}
    by_picture = sorted(image_of, key=lambda sample_id: place[image_of[sample_id]])
    with job_log(folder) as (log, done), collectives.together():
        batches = [
            [each for each in batch if each not in done]
            for batch in batches_of_rank(by_picture, done, batch_size, rank, world_size)
        ]
        pictures = [list(dict.fromkeys(image_of[each] for each in batch)) for batch in batches]
        pixels = iter([None] * len(batches)) if images == "none" else load_batches(pictures, shown, model.image_size_px)
        with ProgressLine("predicting", sum(map(len, batches)), "samples", shown=rank == 0) as line:
            for batch, shown_here, pixels_N3SS in zip(batches, pictures, pixels, strict=True):
                picture_of = [shown_here.index(image_of[each]) for each in batch]
                collectives.check_others()
                asked = None if questions is None else [questions[each] for each in batch]
                filled = [prompts[each] for each in batch]
                if isinstance(how, Decoding):
                    texts = model.generate(pixels_N3SS, filled, how, picture_of, asked)
                else:
                    texts = model.rank(pixels_N3SS, filled, how, picture_of, asked)
                log.append({"id": each, "text": text.strip()} for each, text in zip(batch, texts, strict=True))
                line.advance(len(batch))
