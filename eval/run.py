"""`python -m eval.run`: what one checkpoint predicts on one task, in the task's official format.

Also under `deepspeed --module eval.run` or srun, at any number of ranks. Stopped or killed anywhere, the same command
goes on where it was, at any other number of ranks; finished, it does nothing. Score the result with `eval.score`.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.tasks.run_options import (
    DECODING_FLAGS,
    DEFAULT_SPLIT,
    QUESTION_TASKS,
    check_usage,
    load_data,
    run_parser,
    settings_of,
)
from pipeline.command_line import finish, print_settings

if TYPE_CHECKING:
    from eval.sets.official_files import SampleId
    from eval.sets.samples import RetrievalData, TaskData
    from eval.tasks.task_folder import TaskFolder
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.weights.any_format import WeightsSource


def predict(options: argparse.Namespace) -> Path:
    """Run the task; returns the official file. Raises ValueError in one line for whatever does not fit."""
    from eval.tasks.task_folder import TaskFolder, official_name
    from pipeline.config import load_recipe
    from pipeline.distributed import process_group
    from pipeline.weights.any_format import find_weights

    data = load_data(options, options.split or DEFAULT_SPLIT[options.task])
    folder = TaskFolder(options.output)
    source = find_weights(options.weights, load_recipe(options.recipe, options.set) if options.recipe else None)
    settings = folder.adopt(settings_of(options, data, source))
    official = folder.path / official_name(options.task)
    process_group.initialise()
    try:
        predict_missing(options, settings, data, folder, source)
    finally:
        process_group.shut_down()
    return official


def predict_missing(
    options: argparse.Namespace,
    settings: dict[str, Any],
    data: "TaskData | RetrievalData",
    folder: "TaskFolder",
    source: "WeightsSource",
) -> None:
    """Load the model, predict this rank's part, and on rank 0 put all parts together."""
    from eval.sets.samples import TaskData
    from eval.tasks import vqa
    from pipeline.distributed import collectives, process_group
    from pipeline.models.inference import LanguageModel
    from pipeline.weights.any_format import load_any

    with collectives.together():
        if process_group.rank() == 0:
            folder.check_pictures(data.image_paths, pictures_used(folder.path, data, options.images))
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    model, notes = load_any(source, process_group.device_name())
    left = [note for note in notes if note.startswith("left to the recipe's towers")]
    if left and process_group.rank() == 0:
        print(f"{len(left)} tensors of towers in {source.path} are left to the recipe's; of fine-tuned weights, "
              "take the image encoder along with pipeline.convert --image-encoder", file=sys.stderr)  # fmt: skip
    needed = 1 if options.task == "retrieval" else 2
    if model.stage != needed:
        raise ValueError(
            f"--weights {source.path}: these are of stage {model.stage}; task {options.task} needs those of stage "
            f"{needed}"
        )
    settings |= {
        "vision": model.recipe.vision.name,
        "language": model.recipe.language.name if model.recipe.language else None,
        "image_size_px": model.image_size_px,
        "recipe": model.recipe.model_dump(mode="json"),
        "towers": model.fingerprints(),
    }
    if isinstance(model, LanguageModel) and options.task in QUESTION_TASKS and options.prompt is None:
        settings["prompt"] = vqa.DEFAULT_PROMPTS[model.language_kind]
    settings = folder.adopt(settings)  # other frozen weights at an old path are other settings, too
    if folder.is_complete():  # known only now: what frozen weights a path holds is seen by loading them
        if process_group.rank() == 0:
            print(f"complete already: {options.output}")
        return
    if isinstance(model, LanguageModel):
        assert isinstance(data, TaskData)
        _generate(options, model, settings, data, folder)
    else:
        assert not isinstance(data, TaskData)
        _retrieve(options, model, settings, data, folder)


def pictures_used(folder: Path, data: "TaskData | RetrievalData", images: str) -> "Collection[SampleId]":
    """The pictures that predictions in the folder were made of: those of finished samples. All, once there are any,
    where a sample is shown another's picture, and in retrieval once all were embedded."""
    from eval.sets.samples import TaskData
    from eval.tasks.predictions import finished
    from eval.tasks.retrieval import ITC

    done = finished(folder)
    if isinstance(data, TaskData) and images == "own":
        return {sample.image_id for sample in data.samples if sample.id in done}
    return data.image_paths if done or (folder / ITC).is_file() else ()


def _generate(
    options: argparse.Namespace,
    model: "LanguageModel",
    settings: dict[str, Any],
    data: "TaskData",
    folder: "TaskFolder",
) -> None:
    from eval.tasks import captioning, generation, vqa
    from eval.tasks.predictions import merge
    from pipeline.distributed import collectives, process_group
    from pipeline.models.language import Decoding

    task = vqa if options.task in QUESTION_TASKS else captioning
    prompts = task.prompts(data, settings["prompt"])
    with collectives.together():
        if process_group.rank() == 0:
            folder.describe(settings, data.image_paths)
    generation.generate_all(
        model,
        data,
        prompts,
        Decoding(**{name: settings[name] for name in DECODING_FLAGS}),
        folder.path,
        images=options.images,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    with collectives.together():
        if process_group.rank() == 0:
            folder.check_pictures(data.image_paths, data.image_paths)  # none was replaced meanwhile
            task.write_official(folder.path, merge(folder.path, list(prompts)))
            folder.finish()


def _retrieve(
    options: argparse.Namespace,
    model: "RetrievalModel",
    settings: dict[str, Any],
    data: "RetrievalData",
    folder: "TaskFolder",
) -> None:
    from eval.tasks import retrieval
    from eval.tasks.predictions import merge
    from pipeline.distributed import collectives, process_group

    with collectives.together():
        if process_group.rank() == 0:
            folder.describe(settings, data.image_paths)
    retrieval.rank_all(
        model,
        data,
        folder.path,
        images=options.images,
        seed=options.seed,
        batch_size=options.batch_size,
        k=options.k_test,
    )
    with collectives.together():
        if process_group.rank() == 0:
            folder.check_pictures(data.image_paths, data.image_paths)
            entries = merge(folder.path, list(data.image_paths))
            retrieval.write_official(folder.path, data, entries, options.k_test)
            folder.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = run_parser(__doc__)
    options = parser.parse_args(arguments)
    check_usage(parser, options)
    from pipeline.distributed import process_group

    if process_group.rank() == 0:
        print_settings(options)

    def work() -> None:
        official = predict(options)
        if process_group.rank() == 0:
            print(official)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
