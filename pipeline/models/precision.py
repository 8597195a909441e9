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


def for_products(values: Tensor) -> Tensor:
    """In autocast's number format: done once, where several products would each cast the same values again."""
    kind = values.device.type
    return values.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else values


def add_in_fp32() -> None:
    """Products of fp16 and bf16 matrices add up in fp32. By default torch lets a GPU join parts of a sum in 16 bits."""
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def at_least_fp32(values: Tensor) -> Tensor:
    """bf16 and fp16 become fp32; fp32 and fp64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
