"""What eval.run is asked: its flags, the data they name, and the settings that its predictions depend on."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser

if TYPE_CHECKING:
    from eval.sets.samples import RetrievalData, TaskData
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


def run_parser(description: str | None) -> Parser:
    """The flags of eval.run."""
    parser = Parser(prog="python -m eval.run", description=description, formatter_class=argparse.RawTextHelpFormatter)
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
    if options.length_penalty is not None and not math.isfinite(options.length_penalty):
        parser.error(f"argument --length-penalty: {options.length_penalty}, expected a finite number")
    if options.task == "retrieval":
        given = [name for name in ("prompt", *DECODING_FLAGS) if getattr(options, name) is not None]
        if given or options.images == "none":
            flag = given[0].replace("_", "-") if given else "images none"
            parser.error(f"argument --{flag}: retrieval has no use for it")


def load_data(options: argparse.Namespace, split: str) -> "TaskData | RetrievalData":
    """The samples of the task. Raises ValueError in one line for a folder that does not hold them."""
    from eval.sets import captioned, question_sets

    if options.task == "retrieval":
        return captioned.load_retrieval(options.data, split, options.limit)
    load = {
        "captioning": captioned.load_captioning,
        "nocaps": captioned.load_nocaps,
        "vqa": question_sets.load_vqa,
        "okvqa": question_sets.load_okvqa,
        "gqa": question_sets.load_gqa,
    }[options.task]
    return load(options.data, split, options.limit)


def settings_of(
    options: argparse.Namespace, data: "TaskData | RetrievalData", source: "WeightsSource"
) -> dict[str, Any]:
    """Everything that the predictions depend on, by content, and where it lay. None: decided by the weights."""
    from eval.tasks import captioning, vqa
    from eval.tasks.task_folder import FORMAT
    from pipeline.files import sha256_of

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
        "converted_from": source.converted_from(),
        "step": source.step(),
        "data": str(options.data.absolute()),
        "annotations": str(data.annotations),
        "data_set": data.data_set.name,
        "is_published_set": data.data_set.is_published and options.limit is None,
        "is_of_published_set": data.data_set.is_published,
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
