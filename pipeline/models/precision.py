"""Number formats: a recipe's names for them, autocasting to one, and the promotion that losses need."""

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Matrix products in `precision`, the rest as torch's autocast decides; nothing at all for fp32."""
    return torch.autocast(device_type, dtype=DTYPES[precision], enabled=precision != "fp32")


def at_least_fp32(values: Tensor) -> Tensor:
    """bf16 and fp16 become fp32; fp32 and fp64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
