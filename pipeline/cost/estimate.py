"""Memory, time and traffic of a recipe on some GPUs, from runs of its task without weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import Recipe
from pipeline.cost import states, traffic
from pipeline.cost.aside import Aside
from pipeline.cost.dry_run import (
    BRIDGE_BACKWARD,
    LANGUAGE,
    LANGUAGE_BACKWARD,
    LOGITS,
    VISION,
    DryRun,
    UnweightedRecipe,
    on_lines,
    once,
)
from pipeline.cost.flops import fewest_samples
from pipeline.cost.fusion import fused
from pipeline.cost.gpus import GIB, HOST_BANDWIDTH, Gpu
from pipeline.cost.operations import Operation
from pipeline.cost.saving import Save, save_of
from pipeline.cost.step_time import LAUNCH_S, LAUNCHES_A_PARAMETER, Step, syncs_in_mid_step, work_of
from pipeline.cost.unweighted import longest_lengths, mean_lengths
from pipeline.cost.zero_policy import ZeroPolicy, read_policy

CONTEXT_BYTES = int(1.5 * GIB)  # CUDA context, NCCL, cuBLAS workspaces: an assumption
FRAGMENTED_SHARE = 0.05  # of what is allocated, lost between blocks: an assumption
ADAMW_BYTES = 28  # an element: reads weight, gradient and two moments, writes all but the gradient
LINES_ALONE = 6  # probes on lines through two sizes, before others halve what is left
FEWEST_ON_LINES = 2  # a batch of one makes other copies
MOST_GROWTH = 16  # of the micro batch, from one that fits to the next that is tried
SECONDS_A_DAY = 86400.0
NEXT_BATCH = "next batch through the vision tower"


@dataclass(frozen=True)
class Assumptions:
    """What a recipe does not say."""

    num_gpus: int
    gpus_per_node: int
    utilisation: float  # share of the peak that the arithmetic done reaches
    caption_tokens: int  # mean, for time; memory is of the longest
    node_network: float  # bytes a second out of a node


@dataclass(frozen=True)
class Plan:
    """`memory` by part, bytes a GPU. Of one sample, forward and backward: `flops` by part are what the hardware does,
    layers that activation checkpointing computes twice among them; `model_flops` count each layer once."""

    memory: dict[str, int]
    host_bytes: int
    vision_peak: int
    flops: dict[str, float]
    model_flops: float
    seconds: dict[str, float]  # of a step, by cause
    transfers: list[traffic.Transfer]
    gathering_all_images: int
    save: Save
    largest_micro: int
    trained_elements: int
    steps: dict[str, Step]  # as the code runs, and with what compiling may save

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    def days(self, steps: int) -> float:
        return steps * self.step_s / SECONDS_A_DAY


def largest_that_fits(bytes_of: Callable[[int], int], least: int, likely: int, room: int) -> int:
    """The largest size that takes at most `room` bytes; 0 when even `least` does not fit.

    Memory is the largest of many straight lines in the size: so beyond two sizes it lies above the line through them.
    What that line already excludes is not run.
    """
    sizes = {least: bytes_of(least)}
    if sizes[least] > room:
        return 0
    fitting, too_large, probe = least, 0, max(least + 1, likely)
    while too_large != fitting + 1:
        sizes[probe] = bytes_of(probe)
        before = fitting
        if sizes[probe] <= room:
            fitting = probe
        else:
            too_large = probe
        slope = (sizes[fitting] - sizes[before]) / max(1, fitting - before)
        if slope and sizes[fitting] + slope > room + 1:
            break
        if len(sizes) > LINES_ALONE and too_large and len(sizes) % 2:
            probe = (fitting + too_large) // 2  # the line alone may close in from one side only
            continue
        other = too_large or before
        slope = (sizes[other] - sizes[fitting]) / (other - fitting)
        further = int((room - sizes[fitting]) / slope) if slope > 0 else fitting * MOST_GROWTH
        # As memory may grow with the square of a batch, not further than MOST_GROWTH at once.
        probe = min(fitting + max(1, further), too_large - 1 if too_large else fitting * MOST_GROWTH)
    return fitting


class Planner:
    """A recipe (its accumulation decided) on GPUs of one type. Runs without weights are kept and used again.

    `say` is told what is computed next: a plan takes seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        ds_config: dict[str, Any],
        gpu: Gpu,
        assumed: Assumptions,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if recipe.vision.precision == "fp8" and gpu.peak_fp8_flops is None:
            raise ValueError(f"vision.precision 'fp8': {gpu.name} has no fp8 products; use fp16")
        self.recipe, self.gpu, self.assumed, self.ds_config = recipe, gpu, assumed, ds_config
        self.policy: ZeroPolicy = read_policy(ds_config)
        self.say = say
        say("towers and bridge without weights")
        self.unweighted = UnweightedRecipe(recipe)
        self.runs: dict[int, DryRun] = {}
        task = self.unweighted.task
        self.bridge = states.tensors_of(task.bridge)
        frozen = task.towers.vision
        self.vision_bytes = states.tensors_of(frozen).num_bytes if frozen else 0  # a trained one is in the bridge
        self.language = states.tensors_of(task.towers.language.model, task.bridge) if task.towers.language else None
        self.passes = recipe.batch.num_passes(assumed.num_gpus)

    def dry_run(self, micro_size: int) -> DryRun:
        if micro_size not in self.runs:
            self.say(f"a micro batch of {micro_size}, longest captions")
            lengths = longest_lengths(self.recipe)
            self.runs[micro_size] = self.unweighted.run(micro_size, lengths, self.assumed.num_gpus)
        return self.runs[micro_size]

    def memory(self, run: DryRun) -> dict[str, int]:
        """Bytes a GPU by part, at the moment when most lives."""
        held = states.bridge_states(self.bridge, self.policy, self.assumed.num_gpus)
        parts = {"vision tower": self.vision_bytes}
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
        # Its blocks are those of another stream (training/ahead.py): torch's allocator gives them to no other use.
        parts[NEXT_BATCH] = run.vision_peak if parts["vision tower"] else 0
        parts["working memory at the peak"] = run.peak - sum(run.kept.values())
        parts["communication buffers"] = buffers
        lost = int(FRAGMENTED_SHARE * sum(parts.values()))
        parts["CUDA context and fragmentation"] = CONTEXT_BYTES + lost
        return {part: size for part, size in parts.items() if size}

    def total_bytes(self, micro_size: int) -> int:
        return sum(self.memory(self.dry_run(micro_size)).values())

    def largest_micro(self) -> int:
        """The largest micro batch that fits, 0 when none does."""
        own, room = self.recipe.batch.micro_size, self.gpu.memory_bytes
        # Stage 1 compares all pairs of a pass: memory grows with the square. Sequences of pairs grow in steps.
        if self.recipe.stage == 1 or self.recipe.data.pairs_per_sequence > 1:
            return largest_that_fits(self.total_bytes, 2 if self.recipe.stage == 1 else 1, own, room)
        runs = {size: self.dry_run(size) for size in (FEWEST_ON_LINES, max(own, FEWEST_ON_LINES + 1))}

        def bytes_of(size: int) -> int:
            found = on_lines(size, runs)
            return self.total_bytes(size) if found is None else sum(self.memory(found).values())

        return largest_that_fits(bytes_of, FEWEST_ON_LINES, own, room) or int(self.total_bytes(1) <= room)

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
            found += traffic.stage1_features(self.dry_run(self.recipe.batch.micro_size).sent, passes)
        return found

    def network_s(self, transfers: list[traffic.Transfer]) -> dict[str, float]:
        """Seconds by purpose, when all ranks send at once."""
        assumed = self.assumed
        return {
            each.purpose: traffic.seconds_of(
                each, self.gpu, assumed.num_gpus, assumed.gpus_per_node, assumed.node_network
            )
            for each in transfers
        }

    def optimizer_s(self) -> float:
        """AdamW on this rank's part, and what DeepSpeed launches for each parameter while the GPU has little to do."""
        own = self.bridge.elements / self.assumed.num_gpus
        if self.policy.offloads_optimizer:
            return own * 2 * states.FP32 / HOST_BANDWIDTH
        tensors = len(self.bridge.matrices) + len(self.bridge.vectors)
        return own * ADAMW_BYTES / self.gpu.memory_bandwidth + tensors * LAUNCHES_A_PARAMETER * LAUNCH_S

    def _for_time(self) -> tuple[DryRun, DryRun]:
        """The smallest batch of captions of mean length, for FLOPs; a micro batch of typical lengths, for a step."""
        few, tokens, micro_size = fewest_samples(self.recipe), self.assumed.caption_tokens, self.recipe.batch.micro_size
        self.say(f"a micro batch of {micro_size}, captions of COCO's lengths")
        of_samples = self.unweighted.run(few, mean_lengths(self.recipe, tokens))
        return of_samples, self.unweighted.typical_run(micro_size, tokens, self.assumed.num_gpus)

    def steps(self, run: DryRun, transfers: list[traffic.Transfer], model_flops: float) -> dict[str, Step]:
        """The step of the real code's operations, for captions of typical lengths; `model_flops` of one sample."""
        network = self.network_s(transfers)
        shares = self.exposed_shares(network, run.operations)
        syncs = syncs_in_mid_step(self.ds_config, self.passes)
        return {
            name: Step(
                work_of(operations, self.gpu, self.passes),
                self.optimizer_s(),
                sum(seconds * shares.get(purpose, 1.0) for purpose, seconds in network.items()),
                syncs,
                int(sum(each.num_bytes * shares.get(each.purpose, 1.0) for each in transfers)),
                model_flops * self.recipe.batch.micro_size * self.passes,
                self.gpu.peak_flops,
            )
            for name, operations in (("eager", run.operations), ("fused", fused(run.operations)))
        }

    def exposed_shares(self, network: dict[str, float], operations: list[Operation]) -> dict[str, float]:
        """Of purposes that arithmetic may hide, the share that it does not hide, with one micro batch's operations."""
        frozen = not self.recipe.vision.trained
        ahead_s = work_of((each for each in operations if frozen and each.part == VISION), self.gpu).seconds
        backward_s = work_of((each for each in operations if each.part == BRIDGE_BACKWARD), self.gpu).seconds
        if self.policy.stage == 2:  # which sends gradients after each of them
            backward_s *= self.passes
        return traffic.exposed_shares(network, self.policy, self.bridge.elements, ahead_s, backward_s)

    def seconds(self, flops: dict[str, float], transfers: list[traffic.Transfer]) -> dict[str, float]:
        """A step's time by cause, as if nothing overlapped. `flops` of one sample by part."""
        samples = self.recipe.batch.micro_size * self.passes
        arithmetic = sum(work / self.peak(part) for part, work in flops.items())
        return {
            "arithmetic": samples * arithmetic / self.assumed.utilisation,
            "optimizer": self.optimizer_s(),
            "network": sum(self.network_s(transfers).values()),
        }

    def peak(self, part: str) -> float:
        """FLOP a second at the most, of one part's precision. Logits are of the last model that the stage has."""
        recipe, language = self.recipe, self.recipe.language
        precision: str = {VISION: recipe.vision.precision}.get(part, recipe.qformer.precision)
        if language and part in (LANGUAGE, LANGUAGE_BACKWARD, LOGITS):
            precision = language.precision
        if precision == "fp8":
            assert self.gpu.peak_fp8_flops, "checked at the beginning"
            return self.gpu.peak_fp8_flops
        return self.gpu.peak_fp32_flops if precision == "fp32" else self.gpu.peak_flops

    def plan(self) -> Plan:
        """The whole plan. Makes four runs without weights; in stage 1 more, to find the largest micro batch. Two of
        them are made aside, on another core."""
        aside = Aside(self._for_time)
        own, transfers, largest = self.dry_run(self.recipe.batch.micro_size), self.transfers(), self.largest_micro()
        of_samples, typical = aside.result()
        least = fewest_samples(self.recipe)
        flops = {part: total / least for part, total in of_samples.flops.items()}
        model_flops = sum(once(of_samples).values()) / least
        ranks, host = self.assumed.num_gpus, states.bridge_states(self.bridge, self.policy, self.assumed.num_gpus).host
        return Plan(
            self.memory(own),
            host,
            own.vision_peak,
            flops,
            model_flops,
            self.seconds(flops, transfers),
            transfers,
            own.sent.exchanged * ranks * self.passes,
            save_of(self.bridge, self.gpu, self.assumed),
            largest,
            self.bridge.elements,
            self.steps(typical, transfers, model_flops),
        )
