"""The flags of eval.run, the data that they name, and the settings that its predictions depend on."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.catalogue import TASKS, Kind
from pipeline.command_line import Parser, positive

if TYPE_CHECKING:
    from eval.sets.answer_list import AnswerList
    from eval.sets.samples import RetrievalData, TaskData
    from pipeline.weights.any_format import WeightsSource

OWN_SPLIT = "own"  # of a file of one's own, if --split does not name it
ANSWER_CANDIDATES = 128  # of a closed list, as BLIP and ALBEF have it
DECODING_FLAGS = ("num_beams", "max_new_tokens", "min_new_tokens", "length_penalty")


def run_parser(description: str | None) -> Parser:
    """The flags of eval.run."""
    parser = Parser(prog="python -m eval.run", description=description, formatter_class=argparse.RawTextHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--weights", type=Path, required=True, metavar="W",
                       help="run or checkpoint folder, weights file, LAVIS' .pth, transformers' folder")  # fmt: skip
    model.add_argument("--recipe", type=Path, help="names towers and sizes; for LAVIS' and transformers' weights")
    model.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=VALUE",
        help="edits of --recipe; of a run: new places of its towers, language.precision",
    )
    task = parser.add_argument_group("task and data")
    task.add_argument("--task", choices=TASKS, required=True)
    task.add_argument("--data", type=Path, required=True, metavar="DIR",
                      help="official annotation file and pictures, or a file of your own")  # fmt: skip
    task.add_argument("--image-folder", type=Path, metavar="DIR",
                      help="of --data FILE: where its picture names begin (default: the file's folder)")  # fmt: skip
    task.add_argument("--split", help="default: val for vqa, okvqa and nocaps, test-dev for gqa, test for the others;\n"
                      "of --data FILE a name that it gets (default own; eval.select needs val)")  # fmt: skip
    task.add_argument("--limit", type=positive, help="only the first N images (or questions)")
    task.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder of its own; same: continue")
    baseline = parser.add_argument_group("baselines")
    baseline.add_argument("--images", choices=("own", "none", "shuffled"), default="own",
                          help="none: no picture, the language model alone; shuffled: another image's")  # fmt: skip
    baseline.add_argument("--seed", type=int, default=0, help="of --images shuffled (default 0)")
    text = parser.add_argument_group("captions and answers")
    text.add_argument("--prompt", help="default: the paper's; {} stands for the question")
    text.add_argument("--num-beams", type=positive, help="default 5")
    text.add_argument("--max-new-tokens", type=positive, help="default: captions 30, answers 10")
    text.add_argument("--min-new-tokens", type=positive, help="default: captions 8 (causal models 4), answers 1")
    text.add_argument("--length-penalty", type=float, help="default: captions 1, answers -1")
    ranking = parser.add_argument_group("answers from a closed list, ranked by likelihood and not generated")
    ranking.add_argument("--answers", type=Path, metavar="FILE", help="JSON list of texts, or a text file, one a line")
    ranking.add_argument("--answer-candidates", type=positive, metavar="N",
                         help="answers scored whole, those with the likeliest first token (default 128)")  # fmt: skip
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument("--k-test", type=positive, default=128, help="candidates that ITM reranks (default 128)")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=positive, default=32, help="samples at a time on each rank (default 32)")
    speed.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # some launchers pass it
    return parser


def check_usage(parser: Parser, options: argparse.Namespace) -> None:
    """Exit 2 in one line for flags that contradict each other."""
    if options.length_penalty is not None and not math.isfinite(options.length_penalty):
        parser.error(f"argument --length-penalty: {options.length_penalty} is not a finite number")
    if options.answer_candidates and not options.answers:
        parser.error(f"argument --answer-candidates: {options.answer_candidates} are of a closed list; give --answers")
    if options.answers and TASKS[options.task].kind != Kind.QUESTIONS:
        parser.error(f"argument --answers: --task {options.task} asks no question; leave it out")
    if options.answers and (given := [name for name in DECODING_FLAGS if getattr(options, name) is not None]):
        flag = given[0].replace("_", "-")
        parser.error(f"argument --{flag}: has no effect with --answers, which generates nothing; leave it out")
    if TASKS[options.task].kind == Kind.RETRIEVAL:
        given = [name for name in ("prompt", *DECODING_FLAGS) if getattr(options, name) is not None]
        if given or options.images == "none":
            flag = given[0].replace("_", "-") if given else "images none"
            parser.error(f"argument --{flag}: has no effect with --task {options.task}; leave it out")


def load_data(options: argparse.Namespace, split: str) -> "TaskData | RetrievalData":
    """The samples of the task. Raises ValueError in one line when the folder does not hold them."""
    if options.data.is_file():
        return _load_own(options)
    if options.data.exists() and not options.data.is_dir():
        raise ValueError(f"--data {options.data}: is not a regular file, and no folder; name one of them")
    if options.image_folder:
        raise ValueError(f"--image-folder {options.image_folder}: has no effect with --data {options.data}, which is "
                         "not a file of your own; leave it out")  # fmt: skip
    return TASKS[options.task].load(options.data, split, options.limit)


def _load_own(options: argparse.Namespace) -> "TaskData | RetrievalData":
    """The samples of a set of one's own. Raises ValueError for the task of one published set."""
    load = TASKS[options.task].load_own
    if load is None:
        others = ", ".join(name for name, task in TASKS.items() if task.load_own)
        raise ValueError(f"--data {options.data}: is a file, but --task {options.task} reads the folder of a published "
                         f"set; for a file of your own choose {others}")  # fmt: skip
    return load(options.data, options.image_folder, options.limit)


def split_of(options: argparse.Namespace) -> str:
    """The split of a published set; of a file of one's own only a name for it."""
    return str(options.split or (OWN_SPLIT if options.data.is_file() else TASKS[options.task].split))


def settings_of(
    options: argparse.Namespace,
    data: "TaskData | RetrievalData",
    source: "WeightsSource",
    answers: "AnswerList | None" = None,
) -> dict[str, Any]:
    """All that the predictions depend on, by digest, and the paths. None: not known before the weights are loaded."""
    from eval.tasks.task_file import FORMAT
    from pipeline.files import sha256_of
    from pipeline.prompts import ANSWER_DECODING, CAPTION_DECODING

    settings: dict[str, Any] = {
        "format": FORMAT,
        "task": options.task,
        "weights_sha256": source.sha256(),
        "annotations_sha256": sha256_of(data.annotations),
        "split": split_of(options),
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
    if TASKS[options.task].kind == Kind.RETRIEVAL:
        return settings | {"k_test": options.k_test}
    if answers:
        of_list = {"answers": str(answers.path.absolute()), "answers_sha256": sha256_of(answers.path)}
        candidates = {"answer_candidates": options.answer_candidates or ANSWER_CANDIDATES}
        return settings | of_list | candidates | {"prompt": options.prompt}
    asks = TASKS[options.task].kind == Kind.QUESTIONS
    decoding = dict(ANSWER_DECODING if asks else CAPTION_DECODING)
    decoding |= {name: getattr(options, name) for name in DECODING_FLAGS if getattr(options, name) is not None}
    check_lengths(decoding)
    return settings | decoding | {"prompt": options.prompt}


def check_lengths(decoding: dict[str, Any]) -> None:
    """Raise ValueError when no text can have such a length. A minimum of None is not known yet."""
    if (decoding["min_new_tokens"] or 0) > decoding["max_new_tokens"]:
        raise ValueError(
            f"--max-new-tokens {decoding['max_new_tokens']}: less than --min-new-tokens {decoding['min_new_tokens']}; "
            "raise it"
        )
