"""GPU types: memory, arithmetic and bandwidth as published; the network is an assumption.

Figures of H20, B200, L40S, A10, RTX 4090 and V100 were compared with public copies of the makers' sheets, see GPUS.
"""

import re
from dataclasses import dataclass

GIB = 2**30
HOST_BANDWIDTH = 25e9  # bytes a second to the host's memory, PCIe 4.0 x16: an assumption; for offloading


AMPERE = (0.74, 0.42, 0.85)  # product_share, attention_share, bandwidth_share
HOPPER = (0.66, 0.32, 0.88)
NO_NVLINK = (32e9, 3.125e9)  # within_node: PCIe 4.0 x16; between_nodes: 25 Gbit/s a GPU, an assumption
FP32_SHARE = 1 / 16  # of the bf16 peak, as an A100 has it: an assumption for a GPU that is not in the table


@dataclass(frozen=True)
class Gpu:
    """One GPU. Rates are peaks, a second: dense FLOP in bf16 or fp16, in fp32 (not TF32) and in fp8
    (None: the GPU has none), and bytes one way.

    `memory_bytes` is what the driver lets programs have. `between_nodes` is a rank's share of its node's network, one
    200 Gbit/s port a GPU for A100 nodes and 400 Gbit/s for later ones: an assumption, a cluster may have less.
    `has_bf16` is false where the tensor cores multiply in fp16 alone.
    `product_share` and `attention_share` of the arithmetic peak and `bandwidth_share` are what large kernels reach:
    assumptions; `make gpu` measures those of its GPU.
    """

    name: str
    cuda_names: tuple[str, ...]  # what CUDA calls it, in lower case, begins with one of these
    memory_bytes: int
    peak_flops: float
    peak_fp32_flops: float
    peak_fp8_flops: float | None
    memory_bandwidth: float
    within_node: float
    between_nodes: float
    product_share: float
    attention_share: float
    bandwidth_share: float
    has_bf16: bool = True


def _gib(amount: float) -> int:
    return int(amount * GIB)


GPUS = (
    Gpu(
        "a100-40gb",
        ("nvidia a100-sxm4-40gb", "nvidia a100-pcie-40gb"),
        _gib(39.4),
        312e12,
        19.5e12,
        None,
        1555e9,
        300e9,
        25e9,
        *AMPERE,
    ),
    Gpu(
        "a100-80gb",
        ("nvidia a100-sxm4-80gb", "nvidia a100 80gb"),
        _gib(79.2),
        312e12,
        19.5e12,
        None,
        2039e9,
        300e9,
        25e9,
        *AMPERE,
    ),
    Gpu("h100-80gb", ("nvidia h100 80gb hbm3",), _gib(79.1), 989e12, 67e12, 1979e12, 3350e9, 450e9, 50e9, *HOPPER),
    Gpu("h200-141gb", ("nvidia h200",), _gib(139.7), 989e12, 67e12, 1979e12, 4800e9, 450e9, 50e9, *HOPPER),
    Gpu("h20", ("nvidia h20",), _gib(95.0), 148e12, 44e12, 296e12, 4000e9, 450e9, 50e9, *HOPPER),
    Gpu("b200", ("nvidia b200",), _gib(178.3), 2250e12, 75e12, 4500e12, 7700e9, 900e9, 50e9, *HOPPER),
    Gpu("l40s", ("nvidia l40s",), _gib(44.4), 362e12, 91.6e12, 733e12, 864e9, *NO_NVLINK, *AMPERE),
    Gpu("a10", ("nvidia a10",), _gib(22.0), 125e12, 31.2e12, None, 600e9, *NO_NVLINK, *AMPERE),
    Gpu("rtx4090", ("nvidia geforce rtx 4090",), _gib(23.6), 165.2e12, 82.6e12, 330.3e12, 1008e9, *NO_NVLINK, *AMPERE),
    Gpu(
        "v100",
        ("tesla v100-sxm2-32gb",),
        _gib(31.7),
        125e12,
        15.7e12,
        None,
        900e9,
        150e9,
        12.5e9,
        *AMPERE,
        has_bf16=False,
    ),
)
"""Sources, each maker's own: the data sheets of A100, H100, H200, L40S, A10 and V100; HGX B200's for one of its eight
GPUs at 1,000 W; for the RTX 4090, appendix A of NVIDIA's Ada architecture paper, whose dense products add up in fp32.
NVIDIA has no public sheet of the H20: its figures are those that sellers agree on. `memory_bytes` is what torch reports
as the GPU's total. The shares of those after the H200 are assumptions from Ampere and Hopper: no such GPU was seen.

Compared on 2026-11-30 with pages of others, not with the makers' own:
L40S       mullet.se, product 355414, a copy of the sheet: all equal
B200       zdszero.github.io, Hardware.html, a copy of the HGX B200 sheet: 75 TFLOP/s in fp32 and 7.7 TB/s are from it;
           older tables (glennklockwood.com) have 80 and 8; the rest equal
RTX 4090   waredb.com: all equal
H20        zangshuxian.com: all equal, fp8 by its int8
V100       a copy of an encyclopedia's page: 15.7 and 125 TFLOP/s equal; memory and links not found
A10        sysrqmts.com: fp32 and bandwidth equal; its bf16 peak was not found
"""


def gpu_named(name: str) -> Gpu:
    """A GPU of the table, by one of its `known` names."""
    return {gpu.name: gpu for gpu in GPUS}[name]


def known() -> list[str]:
    return [gpu.name for gpu in GPUS]


def gpu_of_cuda(cuda_name: str) -> Gpu | None:
    """The GPU that CUDA calls so; None for one that the table does not have.

    A further letter or number in its name makes another GPU: an A10G is no A10.
    """
    for gpu in GPUS:
        if any(re.match(rf"{re.escape(name)}(?!\w)", cuda_name.lower()) for name in gpu.cuda_names):
            return gpu
    return None


def own_gpu(memory_gib: float, tflops: float, bandwidth_gb_s: float) -> Gpu:
    """A GPU that the table does not have, by memory, dense bf16 peak and memory bandwidth; the rest is assumed."""
    flops, name = tflops * 1e12, f"a GPU of {memory_gib:g} GiB"
    memory = (_gib(memory_gib), flops, flops * FP32_SHARE, None, bandwidth_gb_s * 1e9)
    return Gpu(name, (), *memory, *NO_NVLINK, *AMPERE)
