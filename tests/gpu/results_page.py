"""The results of `make gpu` as one HTML page: what failed, a table of each part, and the longest kernels."""

import json
from pathlib import Path
from typing import Any

from pipeline.files import replace_file
from pipeline.pages.page import render

MOST_KERNELS = 30


def write_page(lines: list[dict[str, Any]], output: Path) -> None:
    parts: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        parts.setdefault(line["part"], []).append(line)
    path = output / "stage1" / "profile_kernels.json"
    kernels = json.loads(path.read_text())[:MOST_KERNELS] if path.exists() else []
    failed = [line for line in lines if not line["ok"]]
    page = render(
        Path(__file__).parent, "results.html", title=f"GPU checks of {gpu_name()}", parts=parts, failed=failed,
        passed=len(lines) - len(failed), kernels=kernels,
    )  # fmt: skip
    replace_file(output / "results.html", page)


def gpu_name() -> str:
    import torch

    name: str = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, in tiny sizes"
    return name
