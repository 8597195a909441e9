"""The table of a step in a plan: as the code runs, and fused."""

from typing import TYPE_CHECKING

from pipeline.cost.gpus import GIB, Gpu

if TYPE_CHECKING:
    from pipeline.cost.estimate import Assumptions
    from pipeline.cost.step_time import Step

WIDTH = 44


def step_lines(steps: "dict[str, Step]", peak_bytes: int, gpu: Gpu, assumed: "Assumptions") -> list[str]:
    """A column for each way to run the step, and what is assumed."""
    from pipeline.cost.step_time import KERNEL_S, LAUNCH_S, SYNC_S

    columns = list(steps.values())
    rows: list[tuple[str, list[str]]] = [
        ("", list(steps)),
        ("kernels", [f"{step.work.kernels}" for step in columns]),
        ("casts", [f"{step.work.casts}" for step in columns]),
        ("moved, GB", [f"{step.work.num_bytes / 1e9:.0f}" for step in columns]),
        ("arithmetic, TFLOP", [f"{step.work.flops / 1e12:.1f}" for step in columns]),
        ("GPU's work, ms", [f"{step.work.seconds * 1e3:.0f}" for step in columns]),
        ("  neither product nor attention, ms", [f"{step.work.other_s * 1e3:.0f}" for step in columns]),
        ("DeepSpeed and AdamW, ms", [f"{step.optimizer_s * 1e3:.0f}" for step in columns]),
        ("network, not behind arithmetic, ms", [f"{step.network_s * 1e3:.0f}" for step in columns]),
        ("network, not behind arithmetic, MB", [f"{step.exposed_bytes / 1e6:.0f}" for step in columns]),
        ("host synchronisations in mid-step, assumed", [f"{step.syncs}" for step in columns]),
        ("step, ms", [f"{step.step_s * 1e3:.0f}" for step in columns]),
        ("model FLOP utilisation", [f"{step.utilisation:.0%}" for step in columns]),
        ("memory at the peak, longest captions, GiB", [f"{peak_bytes / GIB:.1f}" for _ in columns]),
    ]
    lines = [f"a step on {assumed.num_gpus} GPUs, counted from the operations that the code runs"]
    lines += [f"  {name:<{WIDTH}}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows]
    return [
        *lines,
        "  fused: neighbouring pointwise operations between two products as one kernel, as a compiler has it",
        f"  assumed: products reach {gpu.product_share:.0%} of {gpu.peak_flops / 1e12:.0f} TFLOP/s "
        f"({gpu.peak_fp32_flops / 1e12:.3g} in fp32), attention {gpu.attention_share:.0%}, memory "
        f"{gpu.bandwidth_share:.0%} of {gpu.memory_bandwidth / 1e9:.0f} GB/s; a kernel takes {KERNEL_S * 1e6:.1f} us "
        "or more",
        "  assumed: the host waits for the GPU in DeepSpeed's timer alone, if that is on; of the project's own code "
        "tests/pipeline/training/test_host_waits.py shows it",
        "  assumed: the network takes no time behind the next batch's pass through a frozen vision tower and, with "
        "overlap_comm, behind the backward pass; no GPU has shown it",
        f"  assumed: the host launches an operation in {LAUNCH_S * 1e6:.0f} us; a synchronisation costs "
        f"{SYNC_S * 1e3:.0f} ms",
        f"  assumed: captions of COCO's lengths, {assumed.caption_tokens} tokens on average",
        f"  assumed: {gpu.within_node / 1e9:.0f} GB/s a GPU within a node of {assumed.gpus_per_node}, "
        f"{assumed.node_network / 1e9:.0f} GB/s out of a node",
    ]
