"""Part 2: small tasks on CPU and GPU alike, in fp32 and in the shipped number formats, with each attention kernel."""

from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.models.fp8 import Fp8Linear
from pipeline.training.task import vision_of
from tests.gpu import small_tasks
from tests.gpu.checks import Checks, relative_error

FP32_ERROR = 1e-4
LOW_LOSS_ERROR, LOW_GRADIENT_ERROR = 5e-3, 2e-2  # of bf16 with an fp16 image encoder; a CPU shows 5e-3 to 8e-3
LANGUAGE_GRADIENT_ERROR = 8e-2  # through a language model in bf16 or fp16; a CPU shows 1e-2 (T5) and 4e-2 (OPT)
KERNELS = {  # where a kernel cannot serve, as flash with a mask, plain operations do
    "math": [SDPBackend.MATH],
    "memory-efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cuDNN": [SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH],
}
OPT_SCALE, BATCHES = 2.0**16, 5


def run(checks: Checks) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    stage1(checks)
    for language, precision in (("t5", "bf16"), ("opt", "fp16")):
        with checks.guarded(f"stage 2 with {language}"):
            stage2(checks, language, precision)
    with checks.guarded("fp8"):
        fp8(checks)
    with checks.guarded("compiled blocks"):
        compiled(checks)


def stage1(checks: Checks) -> None:
    """Losses and gradients against plain fp32 on the CPU."""
    plain, mixed = small_tasks.stage1("fp32", "fp32"), small_tasks.stage1("fp16", "bf16")
    batches = [small_tasks.small_batch(1, seed) for seed in range(BATCHES)]
    with sdpa_kernel(SDPBackend.MATH):
        wanted = [small_tasks.losses_and_gradients(plain, batch, "cpu") for batch in batches]

    def compare(name: str, task: Any, most_loss: float, most_gradient: float) -> None:
        found = [small_tasks.losses_and_gradients(task, batch, checks.device) for batch in batches]
        report(checks, name, found, wanted, most_loss, most_gradient)

    with checks.guarded("stage 1 in fp32"), sdpa_kernel(SDPBackend.MATH):
        compare("stage 1 in fp32", plain, FP32_ERROR, FP32_ERROR)
    with checks.guarded("stage 1 in bf16"):
        compare("stage 1 in bf16 and fp16", mixed, LOW_LOSS_ERROR, LOW_GRADIENT_ERROR)
    for name, backends in KERNELS.items() if checks.device == "cuda" else [("math", [SDPBackend.MATH])]:
        with checks.guarded(name), sdpa_kernel(backends):
            compare(f"stage 1 in bf16 and fp16, {name} attention", mixed, LOW_LOSS_ERROR, LOW_GRADIENT_ERROR)


def report(checks: Checks, name: str, found: Any, wanted: Any, most_loss: float, most_gradient: float) -> None:
    """The median over batches: where two queries fit a text as well, rounding may choose the other one."""
    for place, (what, most) in enumerate((("losses", most_loss), ("gradient", most_gradient))):
        errors = [relative_error(one[place], other[place]) for one, other in zip(found, wanted, strict=True)]
        checks.at_most(f"{name}: error of the {what}", median(errors), most)


def stage2(checks: Checks, language: str, precision: str) -> None:
    """The language model in its own number format; OPT's gradient with and without the scale of the loss."""
    batches = [small_tasks.small_batch(2, seed) for seed in range(BATCHES)]
    plain = small_tasks.stage2(language, "fp32", "fp32", "fp32")
    wanted = [small_tasks.losses_and_gradients(plain, batch, "cpu") for batch in batches]
    task = small_tasks.stage2(language, precision, "fp16", "bf16")
    for scale in (1.0, OPT_SCALE) if language == "opt" else (1.0,):
        found = [small_tasks.losses_and_gradients(task, batch, checks.device, scale) for batch in batches]
        name = f"stage 2 with {language} in {precision}, loss times {scale:g}"
        report(checks, name, found, wanted, LOW_LOSS_ERROR, LANGUAGE_GRADIENT_ERROR)


def fp8(checks: Checks) -> None:
    """A frozen layer of ViT-g's size multiplies in fp8 as torch's own product on a CPU does."""
    torch.manual_seed(0)
    layer, tokens = Fp8Linear(torch.nn.Linear(1408, 6144).requires_grad_(False)), torch.randn(3, 257, 1408)
    wanted = layer(tokens)
    found = layer.to(checks.device)(tokens.to(checks.device)).cpu()
    checks.at_most("fp8: error of a layer's product", relative_error([found], [wanted]), 2e-3)


def compiled(checks: Checks) -> None:
    """torch.compile's blocks give what the plain ones give, and do not fall back to them. On a CPU, the encoder's."""
    from torch._dynamo.utils import counters

    from pipeline.models.compiling import compile_qformer, compile_vision

    batch = small_tasks.small_batch(1)
    wanted = small_tasks.losses_and_gradients(small_tasks.stage1("fp16", "bf16"), batch, checks.device)
    task = small_tasks.stage1("fp16", "bf16").to(checks.device)
    vision_of(task).to(checks.device)
    compile_vision(vision_of(task))
    if checks.device == "cuda":
        compile_qformer(task.bridge.qformer)
        task.itg_loss_sums = torch.compile(task.itg_loss_sums, dynamic=True)
    counters.clear()
    found = small_tasks.losses_in_place(task, batch, checks.device)
    least = 9 if checks.device == "cuda" else 1  # a block of the encoder, the Q-Former's passes, ITG's loss
    checks.at_least("compiled graphs", counters["stats"]["unique_graphs"], least)
    checks.at_most("breaks in compiled graphs", sum(counters["graph_break"].values()), 0)
    report(checks, "compiled", [found], [wanted], LOW_LOSS_ERROR, LOW_GRADIENT_ERROR)
