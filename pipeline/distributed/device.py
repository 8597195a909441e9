"""Which device a process computes on. A GPU that was allotted but does not work is an error, never a silent CPU."""

import os
import re
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

NO_GPU = ("", "-1")  # values of CUDA_VISIBLE_DEVICES with which a person hides every GPU
NO_FILES = "NoDevFiles"  # SLURM's value for a job without GPUs, but also when it finds no files of those that it gave
OF_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")


class DeviceError(ValueError):
    """A GPU was allotted, and torch cannot use it. Every rank prints it."""


def choose(local_rank: int) -> str:
    """`cuda:N`, or `cpu` where no GPU was allotted or a person hides it.

    N is the rank's number on its node; where a process sees fewer GPUs, as with one GPU bound to each task, what is
    left of it. Raises DeviceError when a GPU was allotted or is there, and torch cannot use it.
    """
    import torch

    if hidden():
        return "cpu"
    sign = sign_of_a_gpu()
    if sign is None and not torch.cuda.is_available():
        return "cpu"
    name = f"cuda:{local_rank % max(1, torch.cuda.device_count())}"
    reason = reason_against(name)
    if reason:
        raise DeviceError(
            f"GPU ({sign or name}): torch {torch.__version__}, built for CUDA {torch.version.cuda}, cannot use it with "
            f"NVIDIA driver {driver_version()} ({reason}); update the driver or install another torch wheel, see "
            "README; to use the CPU on purpose, set CUDA_VISIBLE_DEVICES= (under the deepspeed launcher "
            "DS_ACCELERATOR=cpu)"
        )
    return name


def hidden() -> bool:
    """Whether a person wants the CPU. DeepSpeed's launcher replaces CUDA_VISIBLE_DEVICES; its own variable stays."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    without = seen == NO_FILES and not any(os.environ.get(name) for name in OF_SLURM)
    return seen in NO_GPU or without or os.environ.get("DS_ACCELERATOR") == "cpu"


def sign_of_a_gpu() -> str | None:
    """What says that this process has a GPU: a variable with its value, or a device file; None without such a sign."""
    given = [name for name in OF_SLURM if os.environ.get(name)]
    if os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0":
        given.append("SLURM_GPUS_ON_NODE")
    # DeepSpeed's launcher sets CROSS_RANK, and CUDA_VISIBLE_DEVICES on machines without a GPU, too.
    if os.environ.get("CUDA_VISIBLE_DEVICES") and "CROSS_RANK" not in os.environ:
        given.append("CUDA_VISIBLE_DEVICES")
    files = [str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    return next(iter([f"{name}={os.environ[name]}" for name in given] + files), None)


@cache
def reason_against(name: str) -> str | None:
    """Compute one number on the device; the first sentence of what torch says when it cannot, else None."""
    import torch

    try:
        torch.ones(1, device=name).add_(1).item()
    except Exception as error:  # RuntimeError, AssertionError, AcceleratorError
        return re.split(r"\. |\n", str(error))[0] or type(error).__name__
    return None


def driver_version() -> str:
    """The version of NVIDIA's driver as the kernel tells it, or as nvidia-smi does; else `(none found)`."""
    with suppress(OSError):
        kernel = re.search(r"\b\d{3,}\.\d[\d.]*", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
        if kernel:
            return kernel[0]
    with suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, check=False, capture_output=True, text=True, timeout=20).stdout.split()
        if answer:
            return answer[0]
    return "(none found)"
