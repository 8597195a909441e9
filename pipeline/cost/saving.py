"""What a save takes: how long all ranks wait, and how long a thread of rank 0 then writes beside training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import Recipe
from pipeline.cost.gpus import GIB, Gpu

if TYPE_CHECKING:
    from pipeline.cost.estimate import Assumptions
    from pipeline.cost.states import Tensors

KINDS = 3  # the weight and AdamW's two moments
GATHER_S = 5e-4  # of the host, for one tensor beside its bytes: an assumption
COPY_BANDWIDTH = 3e9  # bytes a second from a GPU to memory that is not pinned: an assumption
DIGEST_BANDWIDTH = 1.4e9  # bytes a second of sha256, as measured on one core
WRITE_BANDWIDTH = 1e9  # bytes a second from one node to the file system: an assumption


@dataclass(frozen=True)
class Save:
    """Bytes in rank 0's host memory and then on the disk; seconds that all ranks wait, and that the thread writes."""

    num_bytes: int
    waiting_s: float
    writing_s: float


def save_of(bridge: "Tensors", gpu: Gpu, assumed: "Assumptions") -> Save:
    """A save gathers whole tensors one by one, by a reduction to all (`training/engine_state.py`)."""
    from pipeline.cost.states import FP32
    from pipeline.cost.traffic import Transfer, seconds_of

    num_bytes = KINDS * FP32 * bridge.elements
    tensors, ranks = KINDS * (len(bridge.matrices) + len(bridge.vectors)), assumed.num_gpus
    reduced = Transfer("a save", int(2 * num_bytes * (ranks - 1) / ranks))
    network_s = seconds_of(reduced, gpu, ranks, assumed.gpus_per_node, assumed.node_network)
    waiting_s = tensors * GATHER_S + network_s + num_bytes / COPY_BANDWIDTH
    return Save(num_bytes, waiting_s, num_bytes / WRITE_BANDWIDTH + num_bytes / DIGEST_BANDWIDTH)


def save_lines(save: Save, recipe: Recipe, elements: int, step_s: float) -> list[str]:
    """The save in a plan's text; `step_s` is that of a step."""
    run, size = recipe.run, f"{save.num_bytes / GIB:.2f} GiB"
    steps = run.checkpoint_every_steps or (run.steps_per_epoch if run.steps else 0)
    share = f", {save.waiting_s / (steps * step_s):.2%} of the {steps} steps between two saves" if steps else ""
    return [
        f"checkpoint: {size}, the bridge's {elements / 1e6:.1f}M weights and two moments each in fp32",
        f"  training waits {save.waiting_s:.1f} s for a save{share}; a thread of rank 0 then writes for "
        f"{save.writing_s:.0f} s, from {size} of its host's memory; the end of the run waits for that, too",
        f"  assumed: {COPY_BANDWIDTH / 1e9:.0f} GB/s from a GPU to the host, {WRITE_BANDWIDTH / 1e9:.0f} GB/s to the "
        f"file system, {DIGEST_BANDWIDTH / 1e9:.1f} GB/s of sha256",
    ]
