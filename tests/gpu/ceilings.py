"""Part 1: what this GPU can do at most: copies, a large product, and the products and attention of the paper's models.

Plans and bounds assume that a model's products reach 0.66 of the peak, its attention 0.32. Both can be read here.
"""

import torch
from torch.nn import functional

from tests.gpu.checks import Checks, seconds_of

PEAK = 989e12  # dense bf16 FLOP a second of an H200 (the maker's figure)
PRODUCTS = {  # rows, width in, width out, number format: ViT-g on 105 pictures, then the Q-Former
    "ViT-g qkv": (105 * 257, 1408, 3 * 1408, "fp16"),
    "ViT-g projection": (105 * 257, 1408, 1408, "fp16"),
    "ViT-g FFN up": (105 * 257, 1408, 6144, "fp16"),
    "ViT-g FFN down": (105 * 257, 6144, 1408, "fp16"),
    "Q-Former image keys and values": (105 * 257, 1408, 12 * 768, "bf16"),
    "Q-Former FFN up": (105 * 32, 768, 3072, "bf16"),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def run(checks: Checks) -> None:
    scale = 64 if checks.tiny else 1
    with checks.guarded("copy"):
        copy(checks, 2**32 // (scale**2))
    with checks.guarded("large product"):
        side = 8192 // scale
        rate = product(checks, side, side, side, torch.bfloat16)
        checks.figure("product of 8192 x 8192 x 8192 in bf16, TFLOP/s", rate / 1e12, least=700)
    work, seconds = 0.0, 0.0
    for name, (rows, wide_in, wide_out, dtype) in PRODUCTS.items():
        with checks.guarded(name):
            sizes = [max(8, size // scale) for size in (rows, wide_in, wide_out)]
            rate = product(checks, sizes[0], sizes[1], sizes[2], DTYPES[dtype])
            checks.figure(f"{name}, share of the peak", rate / PEAK, least=0.40)
            if name.startswith("ViT-g"):
                operations = 2.0 * sizes[0] * sizes[1] * sizes[2]
                work, seconds = work + operations, seconds + operations / rate
    checks.figure("ViT-g's four products together, share of the peak", work / max(seconds, 1e-9) / PEAK, least=0.60)
    with checks.guarded("attention"):
        attention(checks, 1 if checks.tiny else 105)


def copy(checks: Checks, size: int) -> None:
    """Bytes read and written a second by a copy on the device."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=checks.device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), checks.device)
    checks.figure("copy, GB/s read and written", 2 * size / seconds / 1e9, least=3900)
    checks.is_true("the copy is equal", torch.equal(source, target))


def product(checks: Checks, rows: int, wide_in: int, wide_out: int, dtype: torch.dtype) -> float:
    """FLOP a second of one product, on random numbers: zeros would be faster."""
    left = torch.randn(rows, wide_in, device=checks.device).to(dtype)
    right = torch.randn(wide_out, wide_in, device=checks.device).to(dtype)
    return 2.0 * rows * wide_in * wide_out / seconds_of(lambda: functional.linear(left, right), checks.device)


def attention(checks: Checks, pictures: int) -> None:
    """ViT-g's: heads of 88, 257 rows."""
    heads, rows, width = 16, 257, 88
    queries, keys, values = torch.randn(3, pictures, heads, rows, width, device=checks.device).half().unbind()
    seconds = seconds_of(lambda: functional.scaled_dot_product_attention(queries, keys, values), checks.device)
    operations = 4.0 * pictures * heads * rows * rows * width
    checks.figure("ViT-g's attention, share of the peak", operations / seconds / PEAK, least=0.20)
