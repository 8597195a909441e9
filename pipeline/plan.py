"""`python -m pipeline.plan --recipe R.yaml --gpus N --gpu a100-40gb`: plan memory, time and traffic of a run.

A GPU that has no name here is described by --memory-gib, --tflops and --bandwidth, in the place of --gpu. Needs no GPU,
no weights and, for the models of the paper, no network: the recipe's own step runs at its real shapes on tensors
without content.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.command_line import Parser, finish, positive
from pipeline.config import Recipe, dump_recipe, for_ranks, load_recipe
from pipeline.cost.gpus import GIB, HOST_BANDWIDTH, Gpu, gpu_named, known, own_gpu
from pipeline.cost.saving import save_lines
from pipeline.cost.shipped import with_shipped
from pipeline.cost.step_table import step_lines
from pipeline.files import check_target, replace_file

if TYPE_CHECKING:
    from pipeline.cost.estimate import Assumptions, Plan

PAPERS_RUN = {1: "ViT-g in less than 6 days on 16 A100s: 11%", 2: "FlanT5-XXL in less than 3 days on 16 A100s: 15%"}
"""The paper's largest run of a stage (section 3.4), and the share of the peak that it reached at least (our FLOPs)."""
ADVICE = {
    "vision tower": "set vision.precision=fp16, or a smaller vision.name",
    "language model": "set run.layout=sharded with run.zero=ds_configs/zero3.json, or a smaller language.name",
    "bridge": "use more GPUs, or run.zero=ds_configs/zero2_offload.json",
    "activations, language model": "set language.activation_checkpointing=true, or lower batch.micro_size",
    "communication buffers": "set reduce_bucket_size in the file of run.zero (default: 500M elements)",
}
OTHERWISE = "lower batch.micro_size"


def text_of(plan: "Plan", recipe: Recipe, gpu: Gpu, assumed: "Assumptions") -> str:
    """The plan as text."""
    return "\n".join(
        [
            *(*_memory_lines(plan, recipe, gpu), ""),
            *(*step_lines(plan.steps, plan.total_bytes, gpu, assumed), ""),
            *(*_time_lines(plan, recipe, gpu, assumed), ""),
            *_traffic_lines(plan),
        ]
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:9.2f} GiB"


def _memory_lines(plan: "Plan", recipe: Recipe, gpu: Gpu) -> list[str]:
    verdict = "fits" if plan.total_bytes <= gpu.memory_bytes else "DOES NOT FIT"
    lines = [f"memory of a GPU, micro batch {recipe.batch.micro_size}, longest captions (data.max_text_tokens)"]
    lines += [f"  {part:<36}{_gib(size)}" for part, size in plan.memory.items()]
    lines += [f"  {'total':<36}{_gib(plan.total_bytes)}  of {gpu.memory_bytes / GIB:.1f} GiB: {verdict}"]
    if plan.host_bytes:
        lines += [f"  in the host's memory, for each rank: {_gib(plan.host_bytes).strip()}"]
    share = recipe.batch.micro_size * (recipe.batch.accumulation or 1)
    dividing = max((size for size in range(1, plan.largest_micro + 1) if share % size == 0), default=0)
    lines += [
        f"largest micro batch that fits: {plan.largest_micro} (the recipe has {recipe.batch.micro_size}); "
        f"largest one that divides a rank's {share} samples of a step: {dividing}"
    ]
    return [*lines, *save_lines(plan.save, recipe, plan.trained_elements, plan.step_s)]


def _time_lines(plan: "Plan", recipe: Recipe, gpu: Gpu, assumed: "Assumptions") -> list[str]:
    lines = [
        "hardware FLOPs of a sample, forward and backward (a product of m x k and k x n counts 2mnk, attention too)"
    ]
    lines += [f"  {part:<36}{flops / 1e9:9.1f} GFLOP" for part, flops in plan.flops.items() if flops > 5e7]
    lines += [f"  {'total':<36}{(total := sum(plan.flops.values())) / 1e9:9.1f} GFLOP"]
    if plan.model_flops < total:
        lines += [
            f"  {'model FLOPs':<36}{plan.model_flops / 1e9:9.1f} GFLOP; the rest is computed twice (activation "
            "checkpointing)"
        ]
    causes = ", ".join(f"{cause} {seconds:.3f} s" for cause, seconds in plan.seconds.items())
    lines += [f"at {assumed.utilisation:.0%} of the peak, a step: {plan.step_s:.2f} s ({causes})"]
    lines += [_length_line(plan, recipe)]
    fp8 = gpu.peak_fp8_flops if recipe.vision.precision == "fp8" else None
    in_fp8 = f", {fp8 / 1e12:.0f} in fp8" if fp8 else ""
    lines += [
        f"  assumed: the run reaches {assumed.utilisation:.0%} of the peak {gpu.peak_flops / 1e12:.0f} TFLOP/s "
        f"({gpu.peak_fp32_flops / 1e12:.3g} in fp32{in_fp8}); the paper trained {PAPERS_RUN[recipe.stage]} or more"
    ]
    lines += [
        f"  assumed: captions have {assumed.caption_tokens} tokens on average; padding to the longest is not counted; "
        "data, saves and validation take no time"
    ]
    if recipe.data.answers == "all":
        lines += ["  assumed: a question has one answer; with data.answers 'all' the language model runs once for each"]
    if plan.host_bytes:
        lines += [f"  assumed: {HOST_BANDWIDTH / 1e9:.0f} GB/s to the host's memory; AdamW there takes no time"]
    return lines


def _length_line(plan: "Plan", recipe: Recipe) -> str:
    run = recipe.run
    if not run.steps:
        return f"{run.epochs} epochs: so many steps need data.manifest, which is not there, or --epoch-samples"
    epochs = f" ({run.epochs} epochs of {run.steps_per_epoch})" if run.epochs else ""
    days = plan.days(run.steps)
    return f"{run.steps} steps{epochs}: {f'{days:.1f} days' if days >= 1 else f'{24 * days:.1f} hours'}"


def _traffic_lines(plan: "Plan") -> list[str]:
    lines = ["network: bytes that a rank sends in a step"]
    for each in plan.transfers:
        where = " (within the node)" if each.within_node else ""
        lines += [f"  {each.purpose:<36}{each.num_bytes / 1e6:11.2f} MB{where}"]
    if not plan.transfers:
        lines += ["  nothing: one rank"]
    if plan.gathering_all_images:
        all_images = f"{plan.gathering_all_images / 1e6:.2f} MB"
        lines += [f"  (gathering all image features instead: {all_images}, and again in the backward pass)"]
    return lines


def check_precisions(recipe: Recipe, gpu: Gpu) -> None:
    """Raises ValueError for a number format that the GPU does not multiply."""
    if gpu.has_bf16:
        return
    for name, section, instead in (
        ("vision", recipe.vision, "fp32" if recipe.vision.trained else "fp16"),
        ("qformer", recipe.qformer, "fp32"),
        ("language", recipe.language, "fp16 (of a T5, which overflows in fp16: fp32)"),
    ):
        if section and section.precision == "bf16":
            raise ValueError(f"{name}.precision 'bf16': a {gpu.name} has no bf16; set {name}.precision={instead}")


def check_fits(plan: "Plan", recipe: Recipe, gpu: Gpu) -> None:
    """Raises ValueError when the recipe does not fit, in one line that says what to change."""
    if plan.total_bytes <= gpu.memory_bytes:
        return
    groups: dict[str, int] = {}
    for part, size in plan.memory.items():
        group = "bridge" if part.startswith("bridge,") else part.removesuffix(", this rank's part")
        groups[group] = groups.get(group, 0) + size
    largest = max(groups, key=lambda group: groups[group])
    advice = ADVICE.get(largest, OTHERWISE)
    if largest == "language model" and recipe.run.layout == "sharded":
        advice = "use more GPUs, or set a smaller language.name"
    if largest == "activations, language model" and recipe.language and recipe.language.activation_checkpointing:
        advice = OTHERWISE
    if plan.largest_micro:
        advice += (
            f" (up to {plan.largest_micro} fit)"
            if "micro_size" in advice
            else (f", or batch.micro_size to at most {plan.largest_micro}")
        )
    raise ValueError(
        f"does not fit {gpu.name}: {plan.total_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB; the largest part "
        f"is {largest} ({groups[largest] / GIB:.1f} GiB): {advice}"
    )


def write_json(path: Path, plan: "Plan", recipe: Recipe, gpu: Gpu, assumed: "Assumptions") -> None:
    """Everything in bytes, FLOPs and seconds."""
    content: dict[str, Any] = {
        "gpu": asdict(gpu),
        "assumed": asdict(assumed),
        "micro_size": recipe.batch.micro_size,
        **asdict(plan),
        "steps": {
            name: {**asdict(step), "step_s": step.step_s, "utilisation": step.utilisation}
            for name, step in plan.steps.items()
        },
        "total_bytes": plan.total_bytes,
        "fits": plan.total_bytes <= gpu.memory_bytes,
        "step_s": plan.step_s,
        "days": plan.days(recipe.run.steps) if recipe.run.steps else None,
    }
    replace_file(path, json.dumps(content, indent=1) + "\n")


def above_zero(text: str) -> float:
    """The type of a flag that takes an amount. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m pipeline.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = parser.add_argument_group("the recipe")
    recipe.add_argument("--recipe", type=Path, required=True, help="the recipe, a YAML file; see pipeline/recipes/")
    recipe.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="change fields")
    gpus = parser.add_argument_group("the GPUs")
    gpus.add_argument("--gpu", metavar="TYPE", help=f"one of {', '.join(known())}")
    gpus.add_argument("--memory-gib", type=above_zero, metavar="M", help="memory of a GPU that is not among them")
    gpus.add_argument("--tflops", type=above_zero, metavar="T", help="its dense bf16 peak, without sparsity")
    gpus.add_argument("--bandwidth", type=above_zero, metavar="B", help="its memory bandwidth in GB/s")
    gpus.add_argument("--gpus", type=positive, required=True, metavar="N", help="number of all GPUs; each has one rank")
    gpus.add_argument("--gpus-per-node", type=positive, default=8, metavar="G", help="GPUs of a node; default: 8")
    gpus.add_argument(
        "--node-gbit-s", type=positive, metavar="G", help="network of a node; default: one port a GPU, see gpus.py"
    )
    assumed = parser.add_argument_group("what to assume")
    assumed.add_argument("--utilisation", type=float, default=0.4, metavar="X", help="share of the peak; default: 0.4")
    assumed.add_argument(
        "--caption-tokens", type=positive, default=12, metavar="N", help="mean of a caption; default: 12"
    )
    assumed.add_argument(
        "--epoch-samples", type=positive, metavar="N", help="samples of an epoch, while data.manifest is not there"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    arguments = parser.parse_args()
    if not 0 < arguments.utilisation <= 1:
        parser.error(f"--utilisation {arguments.utilisation}: must be above 0 and at most 1")
    described = [arguments.memory_gib, arguments.tflops, arguments.bandwidth]
    if arguments.gpu is None and None in described:
        parser.error("--gpu: is missing; name a GPU, or give --memory-gib, --tflops and --bandwidth, all three")
    if arguments.gpu and any(described):
        parser.error(
            f"--gpu {arguments.gpu}: has figures of its own; remove it, or --memory-gib, --tflops, --bandwidth"
        )
    if arguments.gpu and arguments.gpu not in known():
        parser.error(
            f"--gpu {arguments.gpu}: is not in the table of pipeline/cost/gpus.py; there are {', '.join(known())}; for "
            "another, give --memory-gib, --tflops and --bandwidth"
        )
    return arguments


def main() -> int:
    options = _arguments()
    return finish(lambda: _plan(options))


def _in_steps(recipe: Recipe, epoch_samples: int | None) -> Recipe:
    """The recipe with its steps, where they are known: epochs need the manifest, or the samples of one."""
    from pipeline.data.loader import in_steps, open_source

    if not recipe.run.epochs:
        return recipe
    if epoch_samples:
        recipe.batch.check_samples(epoch_samples, "--epoch-samples")
        return recipe.in_steps(epoch_samples)
    assert recipe.data.manifest is not None, "a length in epochs needs one"
    return in_steps(recipe, open_source(recipe, 1)) if recipe.data.manifest.exists() else recipe


def _say(text: str) -> None:
    print(f"computing: {text}", file=sys.stderr, flush=True)


def _plan(options: argparse.Namespace) -> None:
    from pipeline.cost.estimate import Assumptions, Planner
    from pipeline.training.engine import resolve_ds_config

    recipe = _in_steps(for_ranks(load_recipe(options.recipe, options.set), options.gpus), options.epoch_samples)
    gpu = gpu_named(options.gpu) if options.gpu else own_gpu(options.memory_gib, options.tflops, options.bandwidth)
    check_precisions(recipe, gpu)
    network = options.node_gbit_s * 1e9 / 8 if options.node_gbit_s else gpu.between_nodes * options.gpus_per_node
    assumed = Assumptions(options.gpus, options.gpus_per_node, options.utilisation, options.caption_tokens, network)
    ds_config = resolve_ds_config(recipe, options.gpus)
    if options.caption_tokens > recipe.data.max_text_tokens:
        raise ValueError(
            f"--caption-tokens {options.caption_tokens}: captions are cut to data.max_text_tokens "
            f"{recipe.data.max_text_tokens}; give at most so many"
        )
    if options.json:
        check_target(options.json)
    print(dump_recipe(recipe))
    if recipe.data.manifest and recipe.data.manifest.exists():
        from pipeline.data.loader import enlarged
        from pipeline.data.manifest import load_manifest

        if warning := enlarged(load_manifest(recipe.data.manifest), recipe.vision.image_size_px):
            print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.gpus} {gpu.name}, {options.gpus_per_node} a node", flush=True)
    plan = Planner(with_shipped(recipe), ds_config, gpu, assumed, _say).plan()
    print(f"\n{text_of(plan, recipe, gpu, assumed)}")
    if options.json:
        write_json(options.json, plan, recipe, gpu, assumed)
    check_fits(plan, recipe, gpu)
    if options.json:
        print(options.json)


if __name__ == "__main__":
    sys.exit(main())
