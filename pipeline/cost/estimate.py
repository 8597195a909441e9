"""Memory, time and traffic of a recipe on some GPUs, from runs of its task without weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import Recipe
from pipeline.cost import states, traffic
from pipeline.cost.dry_run import LANGUAGE, LANGUAGE_BACKWARD, LOGITS, VISION, DryRun, UnweightedRecipe
from pipeline.cost.gpus import GIB, HOST_BANDWIDTH, Gpu
from pipeline.cost.unweighted import longest_lengths, mean_lengths
from pipeline.cost.zero_policy import ZeroPolicy, read_policy

CONTEXT_BYTES = int(1.5 * GIB)  # CUDA context, NCCL, cuBLAS workspaces: an assumption
FRAGMENTED_SHARE = 0.05  # of what is allocated, lost between blocks: an assumption
ADAMW_BYTES = 28  # an element: reads weight, gradient and two moments, writes all but the gradient
MOST_GROWTH = 4  # of the micro batch, from one that fits to the next that is tried
SECONDS_A_DAY = 86400.0


@dataclass(frozen=True)
class Assumptions:
    """What a recipe does not say."""

    num_gpus: int
    gpus_per_node: int
    utilisation: float  # share of the peak that the arithmetic done reaches
    caption_tokens: int  # mean, for time; memory is of the longest


@dataclass(frozen=True)
class Plan:
    """`memory` by part, bytes a GPU; `flops` of one sample by part, forward and backward."""

    memory: dict[str, int]
    host_bytes: int
    vision_peak: int
    flops: dict[str, float]
    seconds: dict[str, float]  # of a step, by cause
    transfers: list[traffic.Transfer]
    gathering_all_images: int
    checkpoint_bytes: int
    largest_micro: int
    trained_elements: int

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    def days(self, steps: int) -> float:
        return steps * self.step_s / SECONDS_A_DAY


def largest_that_fits(bytes_of: Callable[[int], int], least: int, likely: int, room: int) -> int:
    """The largest size that takes at most `room` bytes, which grow with it; 0 when even `least` does not fit."""
    sizes = {least: bytes_of(least)}
    if sizes[least] > room:
        return 0
    fitting, too_large, probe = least, 0, max(least + 1, likely)
    while too_large != fitting + 1:
        sizes[probe] = bytes_of(probe)
        if sizes[probe] <= room:
            fitting = probe
        else:
            too_large = probe
        if not too_large:  # as memory may grow with the square of a batch, not further than this at once
            probe = fitting * MOST_GROWTH
        elif len(sizes) % 2:  # halving alone takes long; the line alone may close in from one side only
            probe = (fitting + too_large) // 2
        else:
            slope = (sizes[too_large] - sizes[fitting]) / (too_large - fitting)
            probe = min(fitting + max(1, int((room - sizes[fitting]) / slope)), too_large - 1)
    return fitting


class Planner:
    """A recipe (its accumulation decided) on GPUs of one type. Runs without weights are kept and used again."""

    def __init__(self, recipe: Recipe, ds_config: dict[str, Any], gpu: Gpu, assumed: Assumptions) -> None:
        if recipe.vision.precision == "fp8" and gpu.peak_fp8_flops is None:
            raise ValueError(f"vision.precision 'fp8': {gpu.name} has no fp8 products; use fp16")
        self.recipe, self.gpu, self.assumed = recipe, gpu, assumed
        self.policy: ZeroPolicy = read_policy(ds_config)
        self.unweighted = UnweightedRecipe(recipe)
        task = self.unweighted.task
        self.bridge = states.tensors_of(task.bridge)
        self.vision = states.tensors_of(task.towers.vision)
        self.language = states.tensors_of(task.towers.language.model) if task.towers.language else None
        self.passes = recipe.batch.num_passes(assumed.num_gpus)

    def dry_run(self, micro_size: int) -> DryRun:
        return self.unweighted.run(micro_size, longest_lengths(self.recipe), self.assumed.num_gpus)

    def memory(self, run: DryRun) -> dict[str, int]:
        """Bytes a GPU by part, at the moment when most lives."""
        held = states.bridge_states(self.bridge, self.policy, self.assumed.num_gpus)
        parts = {"vision tower": self.vision.num_bytes}
        buffers = held.buckets
        if self.language and self.recipe.run.layout == "sharded":
            own, gathered = states.sharded_language(self.language, self.policy, self.assumed.num_gpus)
            parts["language model, this rank's part"], buffers = own, buffers + gathered
        elif self.language:
            parts["language model"] = self.language.num_bytes
        parts |= {
            "bridge, fp32 weights": held.weights,
            "bridge, gradients": held.gradients,
            "bridge, AdamW's moments": held.moments,
        }
        bridge = sum(size for part, size in run.kept.items() if part not in (VISION, LANGUAGE, LOGITS))
        parts |= {"activations, bridge": bridge, "activations, language model": run.kept.get(LANGUAGE, 0)}
        parts |= {"image features": run.kept.get(VISION, 0), "logits": run.kept.get(LOGITS, 0)}
        parts["working memory at the peak"] = run.peak - sum(run.kept.values())
        parts["communication buffers"] = buffers
        lost = int(FRAGMENTED_SHARE * sum(parts.values()))
        parts["CUDA context and fragmentation"] = CONTEXT_BYTES + lost
        return {part: size for part, size in parts.items() if size}

    def total_bytes(self, micro_size: int) -> int:
        return sum(self.memory(self.dry_run(micro_size)).values())

    def largest_micro(self) -> int:
        """The largest micro batch that fits, 0 when none does."""
        least = 2 if self.recipe.stage == 1 else 1
        return largest_that_fits(self.total_bytes, least, self.recipe.batch.micro_size, self.gpu.memory_bytes)

    def transfers(self) -> list[traffic.Transfer]:
        """Bytes a rank sends in a step."""
        sharded = self.language if self.recipe.run.layout == "sharded" else None
        ranks, passes = self.assumed.num_gpus, self.passes
        if ranks == 1:
            return []
        found = traffic.gradients_and_weights(self.bridge, sharded, self.policy, ranks, passes)
        if self.assumed.gpus_per_node % self.policy.hpz_ranks:
            found = [replace(each, within_node=False) for each in found]
        if self.recipe.stage == 1:
            found += traffic.stage1_features(self.recipe, self.features(), ranks, passes)
        return found

    def features(self) -> traffic.Features:
        tokens, width = self.unweighted.image_shape()
        return traffic.Features(tokens, width, longest_lengths(self.recipe)[1])

    def seconds(self, flops: dict[str, float], transfers: list[traffic.Transfer]) -> dict[str, float]:
        """A step's time by cause, as if nothing overlapped. `flops` of one sample by part."""
        gpu, assumed = self.gpu, self.assumed
        one_node = assumed.num_gpus <= assumed.gpus_per_node
        samples = self.recipe.batch.micro_size * self.passes
        own = self.bridge.elements / assumed.num_gpus
        optimizer = own * ADAMW_BYTES / gpu.memory_bandwidth
        if self.policy.offloads_optimizer:
            optimizer = own * 2 * states.FP32 / HOST_BANDWIDTH
        inner = sum(each.num_bytes for each in transfers if each.within_node or one_node)
        outer = sum(each.num_bytes for each in transfers if not (each.within_node or one_node))
        return {
            "arithmetic": samples * sum(work / self.peak(part) for part, work in flops.items()) / assumed.utilisation,
            "optimizer": optimizer,
            "network": inner / gpu.within_node + outer / gpu.between_nodes,
        }

    def peak(self, part: str) -> float:
        """FLOP a second at the most, of one part's precision. Logits are of the last model that the stage has."""
        recipe, language = self.recipe, self.recipe.language
        precision = {VISION: recipe.vision.precision}.get(part, recipe.qformer.precision)
        if language and part in (LANGUAGE, LANGUAGE_BACKWARD, LOGITS):
            precision = language.precision
        if precision == "fp8":
            assert self.gpu.peak_fp8_flops, "checked at the beginning"
            return self.gpu.peak_fp8_flops
        return self.gpu.peak_fp32_flops if precision == "fp32" else self.gpu.peak_flops

    def plan(self) -> Plan:
        """The whole plan. Makes some ten runs without weights, to find the largest micro batch."""
        least = 2
        mean = self.unweighted.run(least, mean_lengths(self.recipe, self.assumed.caption_tokens))
        flops = {part: total / least for part, total in mean.flops.items()}
        own, transfers = self.dry_run(self.recipe.batch.micro_size), self.transfers()
        ranks, host = self.assumed.num_gpus, states.bridge_states(self.bridge, self.policy, self.assumed.num_gpus).host
        stage1 = self.recipe.stage == 1
        return Plan(
            self.memory(own),
            host,
            own.vision_peak,
            flops,
            self.seconds(flops, transfers),
            transfers,
            traffic.gathering_all_images(self.recipe, self.features(), ranks, self.passes) if stage1 else 0,
            3 * states.FP32 * self.bridge.elements,
            self.largest_micro(),
            self.bridge.elements,
        )
