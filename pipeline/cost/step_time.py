"""The time of one step: what its kernels take on a GPU, what waits for the host, and what the network adds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.cost.gpus import Gpu
from pipeline.cost.operations import ATTENTION, PRODUCT, Operation

KERNEL_S = 2.5e-6  # the least that a kernel takes, with the gap before the next one: an assumption
LAUNCH_S = 6e-6  # of the host, for one operation of eager PyTorch: an assumption
SYNC_S = 1e-3  # a GPU that was waited for idles until enough is launched again: an assumption
FP8_PRODUCT = "_scaled_mm"  # the name of torch's operation
LAUNCHES_A_PARAMETER = 4  # DeepSpeed, ZeRO-1 and 2: into the bucket, out of it, its norm, its scale (stage_1_and_2.py)
TIMER_SYNCS = 2  # a micro batch: DeepSpeed's throughput timer (utils/timer.py), unless it is switched off


@dataclass(frozen=True)
class Work:
    """The kernels of one step of one GPU. `seconds`: of all; `other_s`: of what is neither product nor attention."""

    kernels: int
    casts: int
    flops: float
    num_bytes: int
    seconds: float
    other_s: float


def seconds_of(operation: Operation, gpu: Gpu) -> float:
    """The slowest of arithmetic, memory and launching. fp32 products are not rounded to TF32."""
    peak = gpu.peak_fp32_flops if operation.in_fp32 else gpu.peak_flops
    if operation.name == FP8_PRODUCT and gpu.peak_fp8_flops:
        peak = gpu.peak_fp8_flops
    share = gpu.attention_share if operation.kind == ATTENTION else gpu.product_share
    memory = operation.num_bytes / (gpu.memory_bandwidth * gpu.bandwidth_share)
    return max(operation.flops / (peak * share), memory, KERNEL_S * operation.kernels)


def work_of(operations: Iterable[Operation], gpu: Gpu, passes: int = 1) -> Work:
    """Of `passes` micro batches with these operations each."""
    kernels, casts, num_bytes = 0, 0, 0
    flops, seconds, other_s = 0.0, 0.0, 0.0
    for operation in operations:
        taken = seconds_of(operation, gpu)
        kernels += operation.kernels
        casts += operation.is_cast
        flops += operation.flops
        num_bytes += operation.num_bytes
        seconds += taken
        other_s += 0.0 if operation.kind in (PRODUCT, ATTENTION) else taken
    return Work(
        kernels * passes, casts * passes, flops * passes, num_bytes * passes, seconds * passes, other_s * passes
    )


@dataclass(frozen=True)
class Step:
    """A step of one GPU: its work, and what adds to it. Times in seconds; `syncs` are those in mid-step."""

    work: Work
    optimizer_s: float
    network_s: float
    syncs: int
    exposed_bytes: int
    model_flops: float
    peak_flops: float

    @property
    def launch_s(self) -> float:
        """What the host needs to launch the work, at the same time; a step takes no less."""
        return self.work.kernels * LAUNCH_S

    @property
    def step_s(self) -> float:
        return max(self.work.seconds, self.launch_s) + self.optimizer_s + self.network_s + self.syncs * SYNC_S

    @property
    def utilisation(self) -> float:
        """Model FLOP utilisation: FLOPs of the model without padding, over the peak."""
        return self.model_flops / (self.step_s * self.peak_flops)


def syncs_in_mid_step(ds_config: dict[str, Any], passes: int) -> int:
    """How often the GPU waits for the host between a step's first and last kernel.

    The exchange's sizes are not among them: the host waits for these while the GPU works on ITG.
    """
    timer = ds_config.get("timers", {}).get("throughput", {}).get("enabled", True)
    return passes * (TIMER_SYNCS if timer else 0)
