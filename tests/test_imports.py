"""Who may import whom, read from the source: programs import downward, to pipeline's ground, and never sideways.

Every command's --help answers without the heavy libraries.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "data_prep", "eval")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
HEAVY = {"torch", "transformers", "timm", "deepspeed", "torchvision", "img2dataset", "pandas", "webdataset"}
RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
)
FORBIDDEN_NAMES = ("utils", "common", "helpers", "misc", "base")

# What all programs stand on. It knows nothing of shards, recipes or models.
GROUND = [
    "pipeline.answers",
    "pipeline.command_line",
    "pipeline.files",
    "pipeline.pages",
    "pipeline.pictures",
    "pipeline.progress_line",
    "pipeline.tar_headers",
    "pipeline.web",
    "pipeline.weight_sets",
    "pipeline.data.captions",
    "pipeline.data.manifest",
]
BRIDGE = [
    *("pipeline.config", "pipeline.models", "pipeline.prompts", "pipeline.tokens", "pipeline.weights"),
    *("pipeline.data.transforms", "pipeline.data.captions"),
]

# Room -> what it may import of this project. The longest name that fits a module decides. Programs import downward.
ALLOWED = {
    "pipeline.config": ["pipeline.config", "pipeline.command_line", "pipeline.files"],
    "pipeline.answers": [],
    "pipeline.command_line": [],
    "pipeline.files": [],
    "pipeline.progress_line": [],
    "pipeline.tar_headers": [],
    "pipeline.tokens": [],
    "pipeline.weight_sets": [],
    "pipeline.prompts": ["pipeline.config", "pipeline.data.captions"],
    "pipeline.pages": ["pipeline.pages", "pipeline.pictures"],
    "pipeline.pictures": ["pipeline.pictures"],
    "pipeline.web": ["pipeline.web", "pipeline.command_line"],
    "pipeline.serving.http_server": ["pipeline.command_line"],
    "pipeline.data.captions": [],
    "pipeline.data.manifest": ["pipeline.files"],
    "pipeline.distributed": ["pipeline.distributed"],
    "pipeline.data": [
        "pipeline.data",
        "pipeline.config",
        "pipeline.tokens",
        "pipeline.pictures",
        "pipeline.tar_headers",
    ],
    "pipeline.models": [
        *("pipeline.models", "pipeline.config", "pipeline.tokens"),
        *("pipeline.objectives.matching", "pipeline.weight_sets"),
    ],
    "pipeline.objectives": [],
    "pipeline.training": ["pipeline"],
    "pipeline.weights": [
        *(
            "pipeline.weights",
            "pipeline.models",
            "pipeline.config",
            "pipeline.files",
            "pipeline.progress_line",
            "pipeline.weight_sets",
        ),
    ],
    "pipeline": ["pipeline"],
    "data_prep": ["data_prep", *GROUND],
    "data_prep.captioning.device": ["pipeline.distributed.process_group"],
    "eval.score": ["eval", *GROUND],
    "eval": ["eval", "pipeline.distributed", *BRIDGE, *GROUND],
}


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _all_modules() -> set[str]:
    return {module_name(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, by its full name."""
    known = _all_modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in known or node.module == "torch" else node.module


def local_imports(path: Path) -> list[str]:
    return [module for module in imports(path) if module.split(".")[0] in (*ROOMS, "tests")]


def allowed_for(module: str) -> list[str]:
    fitting = [room for room in ALLOWED if within(module, [room])]
    return ALLOWED[max(fitting, key=len)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    module = module_name(path)
    for imported in local_imports(path):
        assert within(imported, allowed_for(module)), f"{module} imports {imported}"


def _without_encoding(path: Path) -> Iterator[int]:
    """Lines where a text file is opened in the encoding that the user's locale happens to have."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        told = {keyword.arg for keyword in node.keywords}
        mode = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        is_text = node.func.attr == "open" and isinstance(mode, str) and re.fullmatch(r"[rwax]\+?", mode)
        places = {"read_text": 1, "write_text": 2}.get(node.func.attr, 0)
        if "encoding" not in told and (is_text or len(node.args) < places):
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_deadline_or_duration_is_measured_by_a_clock_that_steps(path: Path) -> None:
    """NTP and daylight saving step the time of day: leases, deadlines and speeds ask time.monotonic()."""
    asked = {
        f"{node.func.value.id}.{node.func.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    assert not asked & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_text_files_are_utf8_whatever_the_locale_says(path: Path) -> None:
    assert not list(_without_encoding(path)), "give encoding"


def _rooms(hall: str) -> dict[str, set[str]]:
    """Room of a hall (a file or a folder in it) -> the other rooms of this hall that it imports."""
    rooms: dict[str, set[str]] = {}
    for path in FILES:
        hall_of_module, _, below = module_name(path).partition(".")
        if hall_of_module == hall and below:
            room = below.partition(".")[0]
            found = (name.split(".") for name in local_imports(path))
            rooms.setdefault(room, set()).update(names[1] for names in found if names[0] == hall and len(names) > 1)
    return {room: others - {room} for room, others in rooms.items()}


@pytest.mark.parametrize("hall", ROOMS)
def test_rooms_of_a_hall_make_no_circle(hall: str) -> None:
    rooms = _rooms(hall)
    while rooms:
        ground = {room for room, others in rooms.items() if not others & rooms.keys()}
        assert ground, f"{hall}: a circle among {sorted(rooms)}"
        rooms = {room: others for room, others in rooms.items() if room not in ground}


@pytest.mark.parametrize("hall", ["data_prep", "eval"])
def test_a_hall_can_be_seen_at_a_glance(hall: str) -> None:
    rooms = _rooms(hall)
    assert len(rooms) <= 17 and sum(map(len, rooms.values())) <= 40, rooms
    commands = {room for room in rooms if f"{hall}.{room}" in COMMANDS}
    for room, others in rooms.items():
        assert not others & commands, f"{hall}.{room} imports a command; put what they share into a room"


def test_deepspeed_is_known_to_training_alone() -> None:
    for path in FILES:
        if "deepspeed" in {imported.split(".")[0] for imported in imports(path)}:
            assert within(module_name(path), ["pipeline.training", "pipeline.train"]), path


def test_img2dataset_and_its_company_stay_in_data_preparation() -> None:
    for path in FILES:
        found = {imported.split(".")[0] for imported in imports(path)} & {"img2dataset", "wandb", "albumentations"}
        assert not found or within(module_name(path), ["data_prep"]), (path, found)


def test_collectives_and_rank_variables_are_known_to_distributed_alone() -> None:
    for path in FILES:
        if within(module_name(path), ["pipeline.distributed"]):
            continue
        assert "torch.distributed" not in {".".join(imported.split(".")[:2]) for imported in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                assert node.value not in RANK_VARIABLES, f"{path}:{node.lineno}: {node.value}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr != "distributed", f"{path}:{node.lineno}"


def _reached_from(module: str) -> set[str]:
    """A module and all of the project that it imports, at the top of a file or inside a function."""
    reached, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current in reached:
            continue
        reached.add(current)
        path = ROOT / Path(*current.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        waiting += [name for name in local_imports(file) if name in _all_modules()]
    return reached


def test_scores_reports_and_metrics_need_no_torch() -> None:
    starts = {"eval.score", "eval.report", "eval.submit"} & _all_modules()
    starts |= {module for module in _all_modules() if within(module, ["eval.metrics"])}
    for start in starts:
        for module in _reached_from(start):
            path = ROOT / Path(*module.split("."))
            file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
            found = {imported.split(".")[0] for imported in imports(file)} & {"torch", "transformers", "timm"}
            assert not found, f"{start} reaches {module}, which imports {found}"


def test_files_are_named_for_what_they_do_and_say_it_first() -> None:
    for path in FILES:
        assert path.stem not in FORBIDDEN_NAMES, path
        assert len(path.read_text().splitlines()) <= 300, f"{path}: more than 300 lines"
        if path.stem != "__init__":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path}: no docstring"


def _is_command(path: Path) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(path.read_text()).body
    )


COMMANDS = [module_name(path) for path in FILES if _is_command(path)]

# Run as `python -m` runs it, then say which heavy libraries were imported on the way.
ASK_FOR_HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print("\\nimported:", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def _help_of(module: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ASK_FOR_HELP, module]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_without_heavy_imports(module: str) -> None:
    answer = _help_of(module)
    assert answer.returncode == 0, answer.stderr
    text, _, imported = answer.stdout.rpartition("imported:")
    assert "usage:" in text and not set(imported.split()) & HEAVY


def test_there_are_the_commands_that_the_design_names() -> None:
    assert {"pipeline.train", "data_prep.download", "data_prep.index", "data_prep.verify"} <= set(COMMANDS)
