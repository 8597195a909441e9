"""`python -m eval.submit vqa|nocaps`: write the file that an evaluation server takes, and check it before the upload.

vqa: an answer to every question of test2015; test-dev and test-standard take the same file.
nocaps: a caption of every image of nocaps_val or nocaps_test.
F.provenance.json, beside the output F, says what F was made from, its size and its digest.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.sets.captioned_images import check_not_coco
from eval.sets.official_files import SampleId, check_same_ids, listed, read_json, read_predictions
from eval.sets.vqa_files import VQA_V2, check_set
from pipeline.command_line import Parser, check_outputs, finish, print_settings
from pipeline.files import sha256_of

VQA_SUBSET = "test2015"
PUBLISHED = {"vqa": (447_793,), "nocaps": (4_500, 10_600)}  # entries of test2015; of NoCaps val and test
MOST_BYTES = 100_000_000  # a caption or answer of 200 characters for each of VQAv2's 447,793 questions is less
LONGEST = {"vqa": 500, "nocaps": 1000}  # characters of one text; a longer one means that the model does not stop
PREDICTED_WITH = {"vqa": {"task": "vqa", "split": "test", "limit": "all"}, "nocaps": {"task": "nocaps", "limit": "all"}}
FIELDS = {"vqa": ("question_id", "answer"), "nocaps": ("image_id", "caption")}
REFERENCE_FLAG = {"vqa": "questions", "nocaps": "images"}


def expected_ids(task: str, path: Path, of_any_size: bool = False) -> list[SampleId]:
    """The ids that a submission must hold. Raises ValueError in one line for another split, format or size."""
    content = read_json(path)
    name, field = ("questions", "question_id") if task == "vqa" else ("images", "id")
    entries = listed(path, content, name)
    if task == "vqa":
        check_set(path, content, VQA_V2)
    else:
        check_not_coco(path, entries)
    subset = content.get("data_subtype")
    if task == "vqa" and subset != VQA_SUBSET:
        raise ValueError(
            f"{path}: data_subtype {subset!r}: the server takes answers to all of {VQA_SUBSET}, and test-dev is only a "
            f"part of it; name v2_OpenEnded_mscoco_{VQA_SUBSET}_questions.json, and predict with --split test"
        )
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: {name}: an entry is not an object; name the official file")
    ids = [entry.get(field) for entry in entries]
    wrong = next((each for each in ids if not isinstance(each, int) or isinstance(each, bool)), None)
    if wrong is not None or None in ids:
        raise ValueError(f"{path}: {field} {wrong!r} is not a whole number, as all ids of the server are; name the "
                         "official file")  # fmt: skip
    twice = next((each for each, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: {field} {twice} occurs twice; name the official file")
    if len(ids) not in PUBLISHED[task] and not of_any_size:
        published = " or ".join(f"{count:,}" for count in PUBLISHED[task])
        raise ValueError(f"{path}: {len(ids):,} {name}, but the published file has {published}; name the published "
                         "file, or give --any-size for a server of your own")  # fmt: skip
    return ids


def validated(task: str, predictions: Path, reference: Path, of_any_size: bool = False) -> list[dict[str, Any]]:
    """The submission's entries in the reference's order. Raises ValueError in one line, naming file and id."""
    id_field, text_field = FIELDS[task]
    found = read_predictions(predictions, id_field, text_field)
    ids = expected_ids(task, reference, of_any_size)
    for sample_id, text in found.items():
        if not isinstance(sample_id, int):
            raise ValueError(f"{predictions}: {id_field} {sample_id!r} is a string; write it as a whole number")
        if len(text) > LONGEST[task]:
            raise ValueError(f"{predictions}: {id_field} {sample_id}: {text_field} of {len(text)} characters, at most "
                             f"{LONGEST[task]} are allowed; check that the model ends its texts")  # fmt: skip
    check_same_ids(predictions, found, reference, ids)
    settings = settings_beside(predictions)
    if (shown := settings.get("image_source", "own")) != "own":
        raise ValueError(f"{predictions}: predicted with --images {shown}, not with each sample's own picture; predict "
                         "again without --images")  # fmt: skip
    for name, wanted in PREDICTED_WITH[task].items():
        if settings.get(name, wanted) != wanted:
            raise ValueError(f"{predictions}: task.json beside it has {name} {settings[name]!r}, but a submission "
                             f"needs {wanted!r}; predict again")  # fmt: skip
    return [{id_field: each, text_field: found[each]} for each in ids]


def provenance(options: argparse.Namespace, reference: Path, content: bytes, entries: list[dict[str, Any]]) -> str:
    """What the submission was made from: the files' digests, and eval.run's settings if task.json is beside them."""
    settings = settings_beside(options.predictions)
    empty = sum(not entry[FIELDS[options.task][1]].strip() for entry in entries)
    told = {
        "submission": {
            "file": options.output.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        },
        "entries": len(entries),
        "empty": empty,
        "predictions": {"file": str(options.predictions), "sha256": sha256_of(options.predictions)},
        REFERENCE_FLAG[options.task]: {"file": str(reference), "sha256": sha256_of(reference)},
        "run": {name: value for name, value in settings.items() if name != "images"},
    }
    return json.dumps(told, indent=1) + "\n"


def settings_beside(predictions: Path) -> dict[str, Any]:
    """eval.run's task.json in the same folder; empty when there is none."""
    task_file = predictions.parent / "task.json"
    settings = read_json(task_file) if task_file.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{task_file}: expected an object, found {type(settings).__name__}; remove it")
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m eval.submit", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=Parser)
    for task, (id_field, text_field) in FIELDS.items():
        of_task = tasks.add_parser(task)
        shape = f"JSON list of {{{id_field}, {text_field}}}, not normalised, as eval.run writes it"
        of_task.add_argument("--predictions", type=Path, required=True, metavar="P", help=shape)
        of_task.add_argument(f"--{REFERENCE_FLAG[task]}", type=Path, required=True, metavar="Q",
                             help="the official file that lists what the server wants")  # fmt: skip
        of_task.add_argument("--output", type=Path, required=True, metavar="F", help="the file to upload")
        of_task.add_argument("--any-size", action="store_true",
                             help="accept a set of your own, in the published format and of any size")  # fmt: skip
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> None:
        from pipeline.files import replace_file

        reference: Path = vars(options)[REFERENCE_FLAG[options.task]]
        beside = options.output.with_name(f"{options.output.name}.provenance.json")
        check_outputs(
            [("--output", options.output), ("provenance of --output", beside)],
            [
                ("--predictions", options.predictions),
                ("task.json beside --predictions", options.predictions.parent / "task.json"),
                (f"--{REFERENCE_FLAG[options.task]}", reference),
            ],
        )
        entries = validated(options.task, options.predictions, reference, options.any_size)
        content = json.dumps(entries, ensure_ascii=True, separators=(",", ":")).encode()
        if len(content) > MOST_BYTES:
            raise ValueError(f"{options.predictions}: the submission would have {len(content)} bytes, at most "
                             f"{MOST_BYTES} are allowed; shorten its texts")  # fmt: skip
        told = provenance(options, reference, content, entries)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(beside, told)
        replace_file(options.output, content)
        summary = json.loads(told)
        print(f"{summary['entries']} entries, {summary['empty']} empty, {len(content)} bytes, sha256 "
              f"{summary['submission']['sha256']}")  # fmt: skip
        print(options.output)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
