"""Whether what a document names exists: commands and their flags, make targets, scripts, recipe fields, files."""

import argparse
import contextlib
import re
import runpy
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args
from unittest import mock

from pydantic import BaseModel

from pipeline.config import Recipe

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "data_prep", "eval", "tests")
FLAG = re.compile(r"--[a-z][\w-]*")
SCRIPT = re.compile(r"(?:.*/)?slurm/([a-z]\w*(?:\.sbatch)?)")
FILE = re.compile(r"[\w./-]+\.(?:py|sbatch|sh|md)|(?:pipeline|data_prep|eval|tests|slurm|ds_configs)/[\w./-]*")
PLACEHOLDER = re.compile(r"[A-Z]{2}.*/|[A-Z]{2}[^/]*\.(?!md)|FILE")
"""In a path: a word that a user replaces."""
OF_OTHERS = frozenset(
    {"--array", "--dependency", "--gpus-per-node", "--kill-on-invalid-dep", "--nodes", "--ntasks-per-node", "--time"}
    | {"--cpus-per-gpu", "--gres", "--mem", "--mem-per-cpu"}
    | {"--gen_kwargs", "--include_path", "--model_args"}
    | {"--kill-on-bad-exit", "--wait", "--overlap", "--cpus-per-task", "--module", "--num_gpus", "--compile-bytecode"}
)
"""Flags of sbatch, srun, deepspeed, uv and lmms-eval that documents mention by themselves."""


class _AskedToParseError(Exception):
    """A command has built its parser and hands it over."""


@cache
def flags_of(module: str) -> frozenset[str]:
    """The flags that a command shows for --help, and those of its tasks. Of modules in tests/, those in their source.

    The command runs in this process as far as its parser.
    """
    if module.startswith("tests."):
        return frozenset(FLAG.findall(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()))
    built: list[argparse.ArgumentParser] = []

    def hand_over(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        built.append(parser)
        raise _AskedToParseError

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", hand_over), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the module may have been imported before
        with contextlib.suppress(_AskedToParseError, SystemExit), contextlib.redirect_stdout(None):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return frozenset(_flags(built[0])) if built else frozenset()  # some commands have no flags at all


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for task in action.choices.values():
                yield from _flags(task)
        elif action.help != argparse.SUPPRESS:
            yield from action.option_strings


@cache
def commands() -> tuple[str, ...]:
    """Every module of the three programs that is run by `python -m`."""
    files = [path for room in ROOMS[:3] for path in (ROOT / room).rglob("*.py")]
    return tuple(_module(path) for path in files if '\nif __name__ == "__main__":' in path.read_text())


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


def is_runnable(module: str) -> bool:
    """Whether `python -m` can run it."""
    place = ROOT.joinpath(*module.split("."))
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def is_python_name(name: str) -> bool:
    """Whether a dotted name is a package, a module or something in one."""
    place = ROOT.joinpath(*name.split("."))
    owner = place.parent.with_suffix(".py")
    defined = owner.is_file() and re.search(rf"\b{place.name}\b", owner.read_text())
    return bool(is_runnable(name) or (place / "__init__.py").is_file() or defined)


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def is_recipe_field(name: str, section: type[BaseModel] = Recipe) -> bool:
    """Whether a dotted name leads to a field of a recipe."""
    first, _, rest = name.partition(".")
    field = section.model_fields.get(first)
    if field is None or not rest:
        return field is not None
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    return is_recipe_field(rest, inner) if inner else True


def faults_of_command(words: list[str]) -> Iterator[str]:
    """What a command line names and this project does not have."""
    flags: frozenset[str] | None = None  # those of the module or script that the line runs
    edits = False
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word in ("|", "&&", "||", ";"):
            flags, edits = None, False
        elif before in ("-m", "--module") and word.split(".")[0] in ROOMS:
            flags = None
            if not is_runnable(word):
                yield f"python -m {word}: no such module"
            elif any(each.startswith("--") for each in words[place + 1 :]):
                flags = flags_of(word)
        elif script := SCRIPT.fullmatch(word):
            if not (ROOT / "slurm" / script[1]).is_file():
                yield f"{word}: no such script"
                continue
            ran = re.findall(rf"-m ((?:{'|'.join(ROOMS)})[.\w]+)", (ROOT / "slurm" / script[1]).read_text())
            flags = frozenset().union(*(flags_of(module) for module in ran))
        elif before == "make" and place == 1 and re.fullmatch("[a-z]+", word) and word not in make_targets():
            yield f"make {word}: no such target"
        elif FLAG.match(word) and " " not in word:
            edits = word == "--set"
            if flags is not None and word.split("=")[0] not in flags:
                yield f"{word}: no flag of this command"
        elif edits and re.match(r"[a-z][\w.]*=", word) and not is_recipe_field(word.split("=")[0]):
            yield f"--set {word}: no field of a recipe"


def faults_of_word(word: str, folder: Path, alone: bool) -> Iterator[str]:
    """A file, module, recipe field or, `alone` in its code span, flag that does not exist. `folder`: the document's."""
    if FILE.fullmatch(word) and not PLACEHOLDER.search(word):
        if not _is_there(word, folder):
            yield f"{word}: no such file"
    elif re.fullmatch(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+", word):
        if not is_python_name(word):
            yield f"{word}: no such module"
    elif re.fullmatch(r"[a-z]+\.[a-z_.]+(?:=.*)?", word) and word.split(".", maxsplit=1)[0] in Recipe.model_fields:
        name = word.split("=", maxsplit=1)[0]
        if not (
            is_recipe_field(name)
            or _is_there(name, folder)
            or name.rpartition(".")[2] in ("json", "yaml", "csv", "safetensors")
        ):
            yield f"{word}: no field of a recipe"
    elif alone and FLAG.match(word):
        name = word.split("=", maxsplit=1)[0]
        if name not in OF_OTHERS and not any(name in flags_of(module) for module in commands()):
            yield f"{word}: no flag of any command"


@cache
def _file_names() -> frozenset[str]:
    rooms = (*ROOMS, "slurm", "ds_configs")
    return frozenset(path.name for room in rooms for path in (ROOT / room).rglob("*"))


def _is_there(word: str, folder: Path) -> bool:
    """As seen from the root or the document's folder; a bare file name anywhere."""
    bare = "/" not in word.rstrip("/")
    if word == "slurm/cluster.env":  # a site's own copy of the example
        return True
    return (ROOT / word).exists() or (folder / word).exists() or (bare and word.rstrip("/") in _file_names())
