"""Both locks name every package of their environment with its version and hash."""

import re
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def _locked(name: str = "requirements.lock") -> dict[str, str]:
    """Package -> version, each with at least one hash."""
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    pins = (re.match(r"([a-z0-9._-]+)==(\S+)", block) for block in blocks)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_the_lock_has_every_pin_of_requirements() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert wanted
    locked = _locked()
    different = {name: pin for name, pin in wanted.items() if locked.get(canonicalize_name(name)) != pin}
    assert not different, "run make lock"


def test_the_environment_of_lmms_eval_changes_one_package_alone() -> None:
    """Its own stand over those of requirements.lock, whose versions the tests know."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own, below = _locked("lmms.lock"), _locked()
    assert f"lmms_eval=={own['lmms-eval']}" in extras["lmms"]
    assert {name for name in own.keys() & below.keys() if own[name] != below[name]} == {"filelock"}, "run make lock"


def test_the_environment_is_the_locks() -> None:
    locked = _locked()
    found = distributions(path=[sysconfig.get_path("purelib")])  # setuptools puts more on the path, of its own
    installed = {canonicalize_name(each.name): each.version for each in found}
    tools = {"pip", "setuptools", "uv", "blip2-pretraining"}  # make the environment, or are this project
    different = {n: v for n, v in installed.items() if n not in tools and locked.get(n) != v}
    assert not different
