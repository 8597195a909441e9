"""What a bare GPU machine lacks is carried there: every package that the checks import is on a list."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu.plan import PARTS
from tests.gpu.wheels import FROM_SOURCE, IMPORTS, ON_MACHINE, READY

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "data_prep", "eval", "tests")
ASKED_FOR = {"device_map": "accelerate", "torch.utils.tensorboard": "tensorboard"}
"""Words of a source file, and the package that another package then imports for them."""


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached() -> set[Path]:
    """The files of pipeline/, of CapFilt and of the checks, and those that they import."""
    waiting = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "data_prep" / "captioning").rglob("*.py")]
    waiting += [(ROOT / Path(*part.module.split("."))).with_suffix(".py") for part in PARTS]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            ours = (name for name in imports(path) if name.split(".")[0] in ROOMS)
            files = ((ROOT / Path(*name.split("."))).with_suffix(".py") for name in ours)
            waiting += [each for each in files if each.exists()]
    return found


@pytest.fixture(scope="module")
def needed() -> dict[str, str]:
    """Each package that is imported, and a file that does it."""
    known, files = {*ROOMS, *sys.stdlib_module_names, "lmms_eval"}, reached()  # it has an environment of its own
    found = {name.split(".")[0]: str(path) for path in files for name in imports(path)}
    asked = {name: str(path) for path in files for word, name in ASKED_FOR.items() if word in path.read_text()}
    return {name: path for name, path in (found | asked).items() if name not in known}


def test_every_package_that_is_imported_is_looked_for(needed: dict[str, str]) -> None:
    assert {"torch", "deepspeed", "pyarrow", *ASKED_FOR.values()} <= needed.keys()
    assert {name: path for name, path in needed.items() if name not in IMPORTS} == {}


def test_what_the_machine_lacks_is_carried(needed: dict[str, str]) -> None:
    carried = {name.replace("-", "_") for name in (*READY, FROM_SOURCE)}
    assert needed.keys() - set(ON_MACHINE) <= carried
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert {"deepspeed", "accelerate", "pydantic", "omegaconf", "webdataset", "braceexpand"} <= pinned & {
        *READY,
        FROM_SOURCE,
    }
