"""python -m tests.gpu.wheels: fill gpu_wheels/ with the packages that a bare GPU machine lacks, for Python 3.12.

Such a machine has torch, transformers, timm and what these need, and no network. Versions are those of this
environment. deepspeed and antlr4 come as sources: their wheels are made here, and hold no compiled code.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = "gpu_wheels"
MOST_BYTES = 60 * 10**6
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
READY = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "omegaconf", "hjson", "webdataset",
    "braceexpand",
)  # fmt: skip
FROM_SOURCE = ("deepspeed", "antlr4-python3-runtime")
IMPORTS = (
    "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "omegaconf", "antlr4", "hjson", "deepspeed",
    "jinja2", "timm", "transformers", "tensorboard", "pyarrow", "einops", "msgpack", "cpuinfo",
)  # fmt: skip
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
    with tempfile.TemporaryDirectory() as made:
        for name in FROM_SOURCE:
            command = [*pip, "wheel", *quiet, "--wheel-dir", made, f"{name}=={version(name)}"]
            subprocess.run(command, check=True)
        for path in Path(made).glob("*.whl"):
            if not path.name.endswith("-none-any.whl"):
                print(f"error: {path.name} is for this machine alone", file=sys.stderr)
                return 1
            shutil.move(path, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(list(folder.iterdir()))} wheels, {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        print(f"error: {size} bytes are more than {MOST_BYTES}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
