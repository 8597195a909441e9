"""`python -m eval.run`: predict with one checkpoint on one task, and write the task's official format.

It runs as one process, under `deepspeed --module eval.run` or under srun, with any number of ranks. After a stop or a
kill, run the same command again: it continues, also with another number of ranks. A finished folder is left as it is.
Score the result with `eval.score`.
"""

import argparse
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.catalogue import TASKS, Kind
from eval.tasks.run_options import (
    DECODING_FLAGS,
    check_lengths,
    check_usage,
    load_data,
    run_parser,
    settings_of,
    split_of,
)
from pipeline.command_line import finish, print_settings

if TYPE_CHECKING:
    from eval.sets.answer_list import AnswerList
    from eval.sets.official_files import SampleId
    from eval.sets.samples import RetrievalData, TaskData
    from eval.tasks.task_folder import TaskFolder
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.models.ranking import Ranking
    from pipeline.weights.any_format import WeightsSource


def predict(options: argparse.Namespace) -> Path:
    """Run the task; returns the official file. Raises ValueError in one line for inputs that do not fit."""
    from eval.sets.answer_list import read_answers
    from eval.tasks.task_folder import TaskFolder, official_name
    from pipeline.config import load_recipe
    from pipeline.distributed import process_group
    from pipeline.weights.any_format import find_weights

    data = load_data(options, split_of(options))
    answers = read_answers(options.answers) if options.answers else None
    folder = TaskFolder(options.output)
    source = find_weights(
        options.weights, load_recipe(options.recipe, options.set) if options.recipe else None, options.set
    )
    settings = folder.adopt(settings_of(options, data, source, answers))
    official = folder.path / official_name(options.task)
    if answers and process_group.rank() == 0:
        print(answers, file=sys.stderr)
    process_group.initialise()  # a collective may last a day: some ranks have far more to predict than others
    predict_missing(options, settings, data, folder, source, answers)
    return official


def predict_missing(
    options: argparse.Namespace,
    settings: dict[str, Any],
    data: "TaskData | RetrievalData",
    folder: "TaskFolder",
    source: "WeightsSource",
    answers: "AnswerList | None" = None,
) -> None:
    """Load the model and predict this rank's part; rank 0 then merges all parts."""
    from eval.sets.samples import TaskData
    from eval.tasks import captioning, vqa
    from pipeline.distributed import collectives, process_group
    from pipeline.models.inference import LanguageModel
    from pipeline.prompts import MIN_CAPTION_TOKENS
    from pipeline.weights.any_format import load_any, warning_of

    with collectives.together():
        if process_group.rank() == 0:
            folder.check_pictures(data.image_paths, pictures_used(folder.path, data, options.images))
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    model, notes = load_any(source, process_group.device_name())
    if (warning := warning_of(source, notes)) and process_group.rank() == 0:
        print(warning, file=sys.stderr)
    needed = 1 if TASKS[options.task].kind == Kind.RETRIEVAL else 2
    if model.stage != needed:
        raise ValueError(
            f"--weights {source.path}: weights of stage {model.stage}; --task {options.task} needs weights of stage "
            f"{needed}"
        )
    settings |= {
        "vision": model.recipe.vision.name,
        "language": model.recipe.language.name if model.recipe.language else None,
        "image_size_px": model.image_size_px,
        "recipe": model.recipe.model_dump(mode="json"),
        "towers": model.fingerprints(),
    }
    if isinstance(model, LanguageModel):
        task = vqa if TASKS[options.task].kind == Kind.QUESTIONS else captioning
        if options.prompt is None:
            settings["prompt"] = task.default_prompt(model.recipe, model.language_kind)
        if not answers:
            if settings["min_new_tokens"] is None:
                settings["min_new_tokens"] = MIN_CAPTION_TOKENS[model.language_kind]
            check_lengths(settings)
    settings = folder.adopt(settings)  # again: frozen towers may have been replaced at their old path
    if folder.is_complete():  # checked only here: the towers' fingerprints are known once they are loaded
        if process_group.rank() == 0:
            print(f"already complete: {options.output}")
        return
    if isinstance(model, LanguageModel):
        assert isinstance(data, TaskData)
        _generate(options, model, settings, data, folder, answers)
    else:
        assert not isinstance(data, TaskData)
        _retrieve(options, model, settings, data, folder)


def pictures_used(folder: Path, data: "TaskData | RetrievalData", images: str) -> "Collection[SampleId]":
    """The pictures that the folder's predictions depend on.

    With a sample's own picture: those of the finished samples. With shuffled pictures, or in retrieval: all of them as
    soon as anything is predicted, since each sample may depend on any picture.
    """
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
    answers: "AnswerList | None",
) -> None:
    from eval.tasks import captioning, generation, vqa
    from eval.tasks.predictions import merge
    from pipeline.distributed import collectives, process_group
    from pipeline.models.language import Decoding

    task = vqa if TASKS[options.task].kind == Kind.QUESTIONS else captioning
    prompts = task.prompts(data, settings["prompt"], model.recipe)
    questions = task.questions(data, model.recipe, prompts)
    how: Decoding | Ranking
    if answers:
        how = model.ranking(answers.answers, settings["prompt"], settings["answer_candidates"])
    else:
        how = Decoding(**{name: settings[name] for name in DECODING_FLAGS})
    with collectives.together():
        if process_group.rank() == 0:
            folder.describe(settings, data.image_paths)
    generation.generate_all(
        model,
        data,
        prompts,
        questions,
        how,
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
    from pipeline.distributed.launcher import end_with_launcher

    if process_group.rank() == 0:
        print_settings(options)

    def work() -> None:
        end_with_launcher()
        with process_group.naming_lost_ranks():
            official = predict(options)
        if process_group.rank() == 0:
            print(official)

    try:
        code = finish(work)
    except Exception:  # a fault of this program or of the machine: the other ranks must not wait for this one
        traceback.print_exc()
        code = 1
    if code:
        return process_group.leave_after_fault(code)
    process_group.shut_down()
    return code


if __name__ == "__main__":
    sys.exit(main())
