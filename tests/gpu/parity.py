"""Part 2: small tasks on CPU and GPU alike, in fp32 and in the shipped number formats, with each attention kernel."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu import small_tasks
from tests.gpu.checks import Checks, relative_error

FP32_ERROR = 1e-4
LOW_LOSS_ERROR, LOW_GRADIENT_ERROR = 5e-3, 2e-2  # of bf16 with an fp16 image encoder; a CPU shows 5e-3 to 8e-3
LANGUAGE_GRADIENT_ERROR = 5e-2  # through a language model in bf16 or fp16
KERNELS = {  # where a kernel cannot serve, as flash with a mask, plain operations do
    "math": [SDPBackend.MATH],
    "memory-efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cuDNN": [SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH],
}
OPT_SCALE = 2.0**16


def run(checks: Checks) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    stage1(checks)
    for language, precision in (("t5", "bf16"), ("opt", "fp16")):
        with checks.guarded(f"stage 2 with {language}"):
            stage2(checks, language, precision)
    with checks.guarded("compiled blocks"):
        compiled(checks)


def stage1(checks: Checks) -> None:
    """Losses and gradients against plain fp32 on the CPU."""
    batch = small_tasks.small_batch(1)
    plain, mixed = small_tasks.stage1("fp32", "fp32"), small_tasks.stage1("fp16", "bf16")
    with sdpa_kernel(SDPBackend.MATH):
        wanted = small_tasks.losses_and_gradients(plain, batch, "cpu")
    with checks.guarded("fp32"), sdpa_kernel(SDPBackend.MATH):
        found = small_tasks.losses_and_gradients(plain, batch, checks.device)
        checks.at_most("stage 1 in fp32: error of the losses", relative_error(found[0], wanted[0]), FP32_ERROR)
        checks.at_most("stage 1 in fp32: error of the gradient", relative_error(found[1], wanted[1]), FP32_ERROR)
    with checks.guarded("default kernels"):
        _low(checks, "chosen by torch", small_tasks.losses_and_gradients(mixed, batch, checks.device), wanted)
    for name, backends in KERNELS.items() if checks.device == "cuda" else [("math", [SDPBackend.MATH])]:
        with checks.guarded(name), sdpa_kernel(backends):
            _low(checks, name, small_tasks.losses_and_gradients(mixed, batch, checks.device), wanted)


def _low(checks: Checks, kernel: str, found: tuple[list, list], wanted: tuple[list, list]) -> None:
    name = f"stage 1 in bf16 and fp16, attention {kernel}"
    checks.at_most(f"{name}: error of the losses", relative_error(found[0], wanted[0]), LOW_LOSS_ERROR)
    checks.at_most(f"{name}: error of the gradient", relative_error(found[1], wanted[1]), LOW_GRADIENT_ERROR)


def stage2(checks: Checks, language: str, precision: str) -> None:
    """The language model in its own number format; OPT's gradient with and without the scale of the loss."""
    batch = small_tasks.small_batch(2)
    wanted = small_tasks.losses_and_gradients(small_tasks.stage2(language, "fp32", "fp32", "fp32"), batch, "cpu")
    task = small_tasks.stage2(language, precision, "fp16", "bf16")
    for scale in (1.0, OPT_SCALE) if language == "opt" else (1.0,):
        found = small_tasks.losses_and_gradients(task, batch, checks.device, scale)
        name = f"stage 2 with {language} in {precision}, loss times {scale:g}"
        checks.at_most(f"{name}: error of the loss", relative_error(found[0], wanted[0]), 2 * LOW_LOSS_ERROR)
        checks.at_most(f"{name}: error of the gradient", relative_error(found[1], wanted[1]), LANGUAGE_GRADIENT_ERROR)


def compiled(checks: Checks) -> None:
    """torch.compile's blocks give what the plain ones give, and do not fall back to them."""
    from torch._dynamo.utils import counters

    from pipeline.models.compiling import compile_qformer, compile_vision

    batch = small_tasks.small_batch(1)
    wanted = small_tasks.losses_and_gradients(small_tasks.stage1("fp16", "bf16"), batch, checks.device)
    task = small_tasks.stage1("fp16", "bf16").to(checks.device)
    task.towers.vision.to(checks.device)
    compile_vision(task.towers.vision)
    compile_qformer(task.bridge.qformer)
    counters.clear()
    found = small_tasks.losses_in_place(task, batch, checks.device)
    checks.at_least("compiled graphs", counters["stats"]["unique_graphs"], 3)
    checks.at_most("breaks in compiled graphs", sum(counters["graph_break"].values()), 0)
    checks.at_most("compiled: error of the losses", relative_error(found[0], wanted[0]), LOW_LOSS_ERROR)
    checks.at_most("compiled: error of the gradient", relative_error(found[1], wanted[1]), LOW_GRADIENT_ERROR)
