"""Answers to questions about pictures: the prompts, and the official list of {question_id, answer}."""

import json
from collections.abc import Iterable
from pathlib import Path

from eval.sets.official_files import SampleId, field_of
from eval.sets.samples import TaskData
from eval.tasks.predictions import Entry
from pipeline.files import replace_file

DEFAULT_PROMPTS = {"causal": "Question: {} Answer:", "seq2seq": "Question: {} Short answer:"}  # paper, section 4.1
DECODING = {"num_beams": 5, "max_new_tokens": 10, "min_new_tokens": 1, "length_penalty": -1.0}


def prompts(data: TaskData, prompt: str) -> dict[SampleId, str]:
    """Each question in the prompt, in place of {}. Raises ValueError for a prompt without exactly one {}."""
    if prompt.count("{}") != 1:
        raise ValueError(f"--prompt {prompt!r}: it needs one {{}} where the question goes")
    before, after = prompt.split("{}")
    return {sample.id: f"{before}{sample.question}{after}" for sample in data.samples}


def write_official(folder: Path, entries: Iterable[Entry]) -> Path:
    """predictions.json, as the VQA evaluation server takes it: raw answers."""
    path = folder / "predictions.json"
    official = [
        {"question_id": entry["id"], "answer": field_of(folder / "predictions.jsonl", entry, "text", (str,))}
        for entry in entries
    ]
    replace_file(path, json.dumps(official, indent=0) + "\n")
    return path
