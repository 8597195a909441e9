"""The README's table of the paper's language models in 16, 8 and 4 bits, computed from their configurations."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from pipeline.cost.gpus import GIB
from pipeline.cost.shipped import folder_of

README = Path(__file__).parents[3] / "pipeline" / "README.md"
NAMES = {
    "OPT-2.7B": "facebook/opt-2.7b",
    "OPT-6.7B": "facebook/opt-6.7b",
    "FlanT5-XL": "google/flan-t5-xl",
    "FlanT5-XXL": "google/flan-t5-xxl",
}
BITS = (16, 8, 4)
SCALES = {16: 0.0, 8: 4.0, 4: 0.0}  # bytes a row
BYTES = {16: 2.0, 8: 1.0, 4: 0.5 + 4 / 64}  # of a weight; in 4 bits 64 of them share a scale of 4 bytes


def gib_of(name: str) -> list[float]:
    config = AutoConfig.from_pretrained(folder_of(name))
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(config)
    linear = [
        each.weight
        for at, each in model.named_modules()
        if isinstance(each, nn.Linear) and at.rpartition(".")[2] not in ("lm_head", "wo")
    ]
    rest = sum(each.numel() for each in model.parameters()) - sum(each.numel() for each in linear)
    return [
        (2 * rest + sum(BYTES[bits] * each.numel() + SCALES[bits] * each.shape[0] for each in linear)) / GIB
        for bits in BITS
    ]


def test_the_table_has_the_sizes() -> None:
    text = README.read_text(encoding="utf-8").partition("### A language model in 8 or 4 bits")[2]
    for name, repository in NAMES.items():
        row = re.search(rf"^\| {re.escape(name)} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
        assert row, name
        assert [float(value) for value in row.groups()] == [round(size, 1) for size in gib_of(repository)], name
