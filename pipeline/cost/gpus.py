"""GPU types: memory, arithmetic and bandwidth, by the makers' figures; the network is an assumption."""

from dataclasses import dataclass

GIB = 2**30
HOST_BANDWIDTH = 25e9  # bytes a second to the host's memory, PCIe 4.0 x16: an assumption; for offloading


AMPERE = (0.74, 0.42, 0.85)  # product_share, attention_share, bandwidth_share
HOPPER = (0.66, 0.32, 0.88)


@dataclass(frozen=True)
class Gpu:
    """One GPU. Rates are peaks, a second: dense FLOP in bf16 or fp16, in fp32 (not TF32) and in fp8
    (None: the GPU has none), and bytes one way.

    `memory_bytes` is what the driver lets programs have. `between_nodes` is a rank's share of its node's network, one
    200 Gbit/s port a GPU for A100 nodes and 400 Gbit/s for later ones: an assumption, a cluster may have less.
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
)


def gpu_named(name: str) -> Gpu:
    """A GPU of the table, by one of its `known` names."""
    return {gpu.name: gpu for gpu in GPUS}[name]


def known() -> list[str]:
    return [gpu.name for gpu in GPUS]


def gpu_of_cuda(cuda_name: str) -> Gpu | None:
    """The GPU that CUDA calls so; None for one that the table does not have."""
    for gpu in GPUS:
        if cuda_name.lower().startswith(gpu.cuda_names):
            return gpu
    return None
