"""python -m tests.gpu.wheels: fill gpu_wheels/ with the packages that a bare GPU machine lacks, for Python 3.12.

Such a machine has torch, transformers, timm and what these need, and no network. Versions are those of this
environment. deepspeed comes as sources: its wheel is made here, and holds no compiled code.
"""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = "gpu_wheels"
MOST_BYTES = 60 * 10**6
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
READY = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions", "omegaconf", "hjson",
    "accelerate", "webdataset", "braceexpand", "protego", "peft",
)  # fmt: skip
FROM_SOURCE = "deepspeed"
ON_MACHINE = (
    "torch", "torchvision", "triton", "transformers", "tokenizers", "huggingface_hub", "safetensors", "timm", "numpy",
    "PIL", "yaml", "tqdm", "psutil", "packaging", "einops", "msgpack", "cpuinfo", "jinja2", "tensorboard", "pyarrow",
)  # fmt: skip
"""What a machine with PyTorch's and transformers' usual company has; by the names of imports."""
IMPORTS = tuple(name.replace("-", "_") for name in (*READY, FROM_SOURCE)) + ON_MACHINE
"""What must be there in the end, from the wheels or from the machine."""


def main() -> int:
    from importlib.metadata import version

    folder = Path(__file__).parents[2] / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pip = [sys.executable, "-m", "pip"]
    target = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    names = [f"{name}=={version(name)}" for name in READY]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "download", *quiet, *target, *platforms, "--dest", str(folder), *names], check=True)
    source = f"{FROM_SOURCE}=={version(FROM_SOURCE)}"
    subprocess.run([*pip, "wheel", *quiet, "--wheel-dir", str(folder), source], check=True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(list(folder.iterdir()))} wheels, {size / 1e6:.1f} MB")
    if not list(folder.glob(f"{FROM_SOURCE}-*-none-any.whl")):
        print(f"error: {FROM_SOURCE}'s wheel is for this machine alone", file=sys.stderr)
        return 1
    if size > MOST_BYTES:
        print(f"error: {size} bytes are more than {MOST_BYTES}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
