"""What torch has as one kernel gives what transformers' own operations give."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from pipeline.config import Language
from pipeline.models.language import build_language


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_t5_of_our_kernels_equals_transformers_own(towers: Path, precision: str) -> None:
    from pipeline.models.precision import DTYPES

    settings = Language(name=str(towers / "t5"), precision=precision, config={"dense_act_fn": "gelu_new"})
    ours = build_language(settings, "cpu").model
    plain = AutoModelForSeq2SeqLM.from_pretrained(
        settings.name, dtype=DTYPES[precision], dense_act_fn="gelu_new"
    ).eval()
    assert "GELUTanh" in repr(ours) and "NewGELU" not in repr(ours) and "NewGELU" in repr(plain)
    assert ours.config.dense_act_fn == "gelu_new"
    generator = torch.Generator().manual_seed(0)
    ids, decoder_ids = (torch.randint(3, 30, (4, length), generator=generator) for length in (9, 6))
    with torch.no_grad():
        found, wanted = (model(input_ids=ids, decoder_input_ids=decoder_ids).logits for model in (ours, plain))
    tolerance = 1e-5 if precision == "fp32" else 3e-2
    assert float((found - wanted).norm() / wanted.norm()) < tolerance
