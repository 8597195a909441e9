"""A language model with 8 or 4 bits a weight, for inference, by bitsandbytes: transformers puts its layers in.

Each tensor is quantised as it is loaded, so a GPU never holds the whole model in another format. Embeddings, norms,
biases, the language head and T5's `wo` are left in bf16 or fp16, which products have, too.
"""

import importlib.util
import logging
from typing import Any

import torch

from pipeline.config.checks import QUANTISED
from pipeline.models.precision import DTYPES

BLOCK = 64  # weights that share a scale in int4


def number_format(precision: str, config: Any) -> torch.dtype:
    """Of the weights; with int8 and int4 of all others: fp16 if the model's own files say so, else bf16. T5: bf16."""
    if precision not in QUANTISED:
        return DTYPES[precision]
    return torch.float16 if config.dtype == torch.float16 and "t5" not in config.model_type else torch.bfloat16


def quantising(precision: str, config: Any) -> dict[str, Any]:
    """The options of transformers' `from_pretrained` for a precision. Raises ValueError without bitsandbytes.

    int8 has a scale for each output row; activations are rounded, too, but for columns with outliers (LLM.int8()).
    int4 is NF4, with a scale for each block of weights.
    """
    kind = number_format(precision, config)
    if precision not in QUANTISED:
        return {"dtype": kind}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"language.precision {precision!r}: needs the package bitsandbytes; pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    quieten()
    how: dict[str, Any] = {"load_in_8bit": True}
    if precision == "int4":
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": kind}
    return {"dtype": kind, "quantization_config": BitsAndBytesConfig(**how)}


def quieten() -> None:
    """Leave out bitsandbytes' warnings: at import of kernels that nobody needs, at each product that bf16 becomes fp16.

    peft imports it, too.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def check_sizes(model: Any, name: str) -> None:
    """Raises ValueError for int4 layers with other sizes than multiples of a block: bitsandbytes 0.50.2 computes them
    wrongly on CPUs, with 2.5 times the error."""
    layers = [(at, each) for at, each in model.named_modules() if type(each).__name__ == "Linear4bit"]
    for at, layer in layers:
        if layer.in_features % BLOCK or layer.out_features % BLOCK:
            raise ValueError(
                f"language.precision 'int4': {at} of {name!r} has {layer.in_features} inputs and {layer.out_features} "
                f"outputs, and both must be multiples of {BLOCK}; use int8"
            )
