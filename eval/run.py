"""`python -m eval.run`: what one checkpoint predicts on one task, in the task's official format.

Also under `deepspeed --module eval.run` or srun, at any number of ranks. Stopped or killed anywhere, the same command
goes on where it was, at any other number of ranks; finished, it does nothing. Score the result with `eval.score`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.command_line import Parser, finish, print_settings

if TYPE_CHECKING:
    from eval.samples import RetrievalData, TaskData
    from eval.task_folder import TaskFolder
    from pipeline.models.inference import LanguageModel, RetrievalModel
    from pipeline.weights.any_format import WeightsSource

QUESTION_TASKS = ("vqa", "okvqa", "gqa")
TASKS = ("captioning", "nocaps", *QUESTION_TASKS, "retrieval")
DEFAULT_SPLIT = {
    "captioning": "test",
    "nocaps": "val",
    "vqa": "val",
    "okvqa": "val",
    "gqa": "test-dev",
    "retrieval": "test",
}
DECODING_FLAGS = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty")


def _parser() -> Parser:
    parser = Parser(prog="python -m eval.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, metavar="W",
                        help="run or checkpoint folder, weights file, LAVIS' .pth, transformers' folder")  # fmt: skip
    parser.add_argument("--recipe", type=Path, help="of LAVIS' and transformers' weights: names towers and sizes")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="edits of the recipe")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="official annotation file and pictures")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", help="default: val for vqa, okvqa and nocaps, test-dev for gqa, test for the others")
    parser.add_argument("--images", choices=("own", "none", "shuffled"), default="own",
                        help="ablations: no picture (the language model alone), or another image's")  # fmt: skip
    parser.add_argument("--prompt", help="default: the paper's; {} stands for a question")
    parser.add_argument("--num-beams", type=int, help="default 5")
    parser.add_argument("--max-new-tokens", type=int, help="default: captions 30, answers 10")
    parser.add_argument("--min-new-tokens", type=int, help="default: captions 8, answers 1")
    parser.add_argument("--length-penalty", type=float, help="default: captions 1, answers -1")
    parser.add_argument("--k-test", type=int, default=128, help="retrieval: candidates of a query that ITM reranks")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, help="only the first N images (or questions)")
    parser.add_argument("--seed", type=int, default=0, help="of --images shuffled")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers pass it
    return parser


def check_usage(parser: Parser, options: argparse.Namespace) -> None:
    """Exit 2 in one line for flags that contradict each other."""
    if options.set and not options.recipe:
        parser.error(f"argument --set: {options.set[0]} without --recipe has nothing to edit")
    for name in ("batch_size", "k_test", "limit", "num_beams", "max_new_tokens", "min_new_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: {value}, expected at least 1")
    if options.task == "retrieval":
        given = [name for name in ("prompt", *DECODING_FLAGS) if getattr(options, name) is not None]
        if given or options.images == "none":
            flag = given[0].replace("_", "-") if given else "images none"
            parser.error(f"argument --{flag}: retrieval has no use for it")


def load_data(options: argparse.Namespace, split: str) -> "TaskData | RetrievalData":
    """The samples of the task. Raises ValueError in one line for a folder that does not hold them."""
    from eval import datasets, question_sets

    if options.task == "retrieval":
        return datasets.load_retrieval(options.data, split, options.limit)
    load = {
        "captioning": datasets.load_captioning,
        "nocaps": datasets.load_nocaps,
        "vqa": question_sets.load_vqa,
        "okvqa": question_sets.load_okvqa,
        "gqa": question_sets.load_gqa,
    }[options.task]
    return load(options.data, split, options.limit)


def settings_of(
    options: argparse.Namespace, data: "TaskData | RetrievalData", source: "WeightsSource"
) -> dict[str, Any]:
    """Everything that the predictions depend on, by content, and where it lay. None: decided by the weights."""
    from eval.task_folder import FORMAT, sha256_of
    from eval.tasks import captioning, vqa

    settings: dict[str, Any] = {
        "format": FORMAT,
        "task": options.task,
        "weights_sha256": source.sha256(),
        "annotations_sha256": sha256_of(data.annotations),
        "split": options.split or DEFAULT_SPLIT[options.task],
        "limit": options.limit or "all",
        "image_source": options.images,
        "seed": options.seed,
        "weights": str(source.files[0] if source.kind == "native" else source.path),
        "weights_format": source.kind,
        "step": source.step(),
        "data": str(options.data.absolute()),
        "annotations": str(data.annotations),
        "data_set": data.data_set.name,
        "is_published_set": data.data_set.is_published and options.limit is None,
        "batch_size": options.batch_size,
    }
    if options.task == "retrieval":
        return settings | {"k_test": options.k_test}
    asks = options.task in QUESTION_TASKS
    decoding = dict(vqa.DECODING if asks else captioning.DECODING)
    decoding |= {name: getattr(options, name) for name in DECODING_FLAGS if getattr(options, name) is not None}
    if decoding["min_new_tokens"] > decoding["max_new_tokens"]:
        raise ValueError(f"--max-new-tokens {decoding['max_new_tokens']}: less than --min-new-tokens")
    default = None if asks else captioning.DEFAULT_PROMPT
    return settings | decoding | {"prompt": default if options.prompt is None else options.prompt}


def predict(options: argparse.Namespace) -> Path:
    """Run the task; returns the official file. Raises ValueError in one line for whatever does not fit."""
    from eval.task_folder import TaskFolder
    from pipeline.config import load_recipe
    from pipeline.distributed import collectives, process_group
    from pipeline.weights.any_format import find_weights

    data = load_data(options, options.split or DEFAULT_SPLIT[options.task])
    folder = TaskFolder(options.output)
    source = find_weights(options.weights, load_recipe(options.recipe, options.set) if options.recipe else None)
    settings = folder.adopt(settings_of(options, data, source))
    official = folder.path / ("scores.npz" if options.task == "retrieval" else "predictions.json")
    if folder.is_complete():
        if process_group.rank() == 0:
            print(f"complete already: {options.output}")
        return official
    process_group.initialise()
    try:
        predict_missing(options, settings, data, folder, source)
        collectives.barrier()
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
    from eval.samples import TaskData
    from pipeline.distributed import process_group
    from pipeline.models.inference import LanguageModel
    from pipeline.weights.any_format import load_any
    from pipeline.weights.fingerprint import fingerprint

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
        "towers": {name: fingerprint(tower) for name, tower in model.frozen_towers().items()},
    }
    settings = folder.adopt(settings)  # other frozen weights at an old path are other settings, too
    if isinstance(model, LanguageModel):
        assert isinstance(data, TaskData)
        _generate(options, model, settings, data, folder)
    else:
        assert not isinstance(data, TaskData)
        _retrieve(options, model, settings, data, folder)


def _generate(
    options: argparse.Namespace,
    model: "LanguageModel",
    settings: dict[str, Any],
    data: "TaskData",
    folder: "TaskFolder",
) -> None:
    from eval.predictions import merge
    from eval.tasks import captioning, generation, vqa
    from pipeline.distributed import collectives, process_group
    from pipeline.models.language import Decoding

    if settings["prompt"] is None:
        settings["prompt"] = vqa.DEFAULT_PROMPTS[model.language_kind]
    task = vqa if options.task in QUESTION_TASKS else captioning
    prompts = task.prompts(data, settings["prompt"])
    if process_group.rank() == 0:
        folder.describe(settings, data.image_paths)
    collectives.barrier()
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
    collectives.barrier()
    if process_group.rank() == 0:
        task.write_official(folder.path, merge(folder.path, list(prompts)))
        folder.finish()


def _retrieve(
    options: argparse.Namespace,
    model: "RetrievalModel",
    settings: dict[str, Any],
    data: "RetrievalData",
    folder: "TaskFolder",
) -> None:
    from eval.predictions import merge
    from eval.tasks import retrieval
    from pipeline.distributed import collectives, process_group

    if process_group.rank() == 0:
        folder.describe(settings, data.image_paths)
    collectives.barrier()
    retrieval.rank_all(
        model,
        data,
        folder.path,
        images=options.images,
        seed=options.seed,
        batch_size=options.batch_size,
        k=options.k_test,
    )
    collectives.barrier()
    if process_group.rank() == 0:
        entries = merge(folder.path, list(data.image_paths))
        retrieval.write_official(folder.path, data, entries, options.k_test)
        folder.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
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
