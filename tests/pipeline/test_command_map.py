"""`python -m pipeline` and `make help` name every command that there is, and answer without importing any."""

import subprocess
import sys
from pathlib import Path

from pipeline.__main__ import INTERNAL, MAP, command_map, first_line
from tests.test_imports import COMMANDS, HEAVY

ROOT = Path(__file__).parents[2]
NAMES = [name for names in MAP.values() for name in names]


def test_every_module_that_can_be_run_is_on_the_map_or_named_as_internal() -> None:
    modules = [name for name in NAMES if not name.startswith(("make ", "slurm/"))]
    assert sorted([*modules, *INTERNAL]) == sorted(name.removesuffix(".__main__") for name in COMMANDS)


def test_every_job_script_is_on_the_map() -> None:
    scripts = [f"slurm/{path.name}" for path in (ROOT / "slurm").iterdir() if path.read_text().startswith("#!")]
    assert sorted(name for name in NAMES if name.startswith("slurm/")) == sorted(scripts)


def test_every_command_says_what_it_does_in_one_line() -> None:
    for name in NAMES:
        line = first_line(name)
        assert len(line) > 8 and "`python" not in line, f"{name}: {line!r}"


def test_the_map_answers_at_once_and_imports_no_command() -> None:
    ask = "import runpy, sys; runpy.run_module('pipeline', run_name='__main__', alter_sys=True); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", ask], check=True, cwd=ROOT, capture_output=True, text=True)
    text, _, imported = answer.stdout.rstrip("\n").rpartition("\n")
    assert text.startswith(command_map())
    found = set(imported.split())
    assert not {name.split(".")[0] for name in found} & {*HEAVY, "data_prep", "eval"}
    assert not found & set(NAMES)


def test_make_help_is_the_map_and_every_target_is_on_it() -> None:
    text = subprocess.run(
        ["make", "--no-print-directory", "help"], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert text.startswith(command_map())
    source = (ROOT / "Makefile").read_text().splitlines()
    targets = [f"make {line.partition(':')[0]}" for line in source if "## " in line and not line.startswith("\t")]
    assert sorted(targets) == sorted(name for name in NAMES if name.startswith("make "))
