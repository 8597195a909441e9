"""Number formats: a recipe's names for them, autocasting to one, and the promotion that losses need."""

import torch
from torch import Tensor

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float16,
}  # fp8: of all but models/fp8.py


def autocast(device_type: str, precision: str) -> torch.autocast:
    """Matrix products in `precision`, the rest as torch's autocast decides; nothing at all for fp32."""
    return torch.autocast(device_type, dtype=DTYPES[precision], enabled=precision != "fp32")


def choose_attention_kernel(device_type: str) -> None:
    """On a CPU, do without torch's fused attention: for short rows its backward outweighs all other work.

    Measured on a stage-1 step in miniature, one core: 0.66 s with it, 0.56 s without in fp32; 0.73 and 0.40 s in bf16.
    """
    if device_type == "cpu":
        torch.backends.cuda.enable_flash_sdp(False)  # despite its name the flag of CPUs too


def at_least_fp32(values: Tensor) -> Tensor:
    """bf16 and fp16 become fp32; fp32 and fp64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
