"""Commands in a locale without UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import parse_recipe
from pipeline.models.build import build_stage1
from pipeline.weights.native import save_weights
from tests.support.latin1 import latin1_environment
from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[2]
RESTARTING = """
import os, sys
from pipeline.command_line import Parser
parser = Parser()
parser.add_argument("text")
text = parser.parse_args().text
print(sys.getfilesystemencoding(), os.getpid(), ascii(text))
"""


@pytest.mark.parametrize(
    ("text", "more", "shown"),
    [
        (b"caf\xc3\xa9", {}, "utf-8 'caf\\xe9'"),
        (b"caf\xe9", {}, "iso8859-1 'caf\\xe9'"),
        (b"caf\xc3\xa9", {"PYTHONUTF8": "0"}, "iso8859-1 'caf\\xc3\\xa9'"),
    ],
)
def test_a_command_of_another_locale_becomes_one_in_utf8(
    text: bytes, more: dict[str, str], shown: str, tmp_path: Path
) -> None:
    """Once, with the same arguments and process number; not where its arguments, or its user, say otherwise."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    with subprocess.Popen(
        [sys.executable, "-c", RESTARTING, text],
        cwd=ROOT,
        env=environment | latin1_environment(tmp_path) | more,
        stdout=subprocess.PIPE,
    ) as process:
        encoding, number, argument = process.communicate(timeout=60)[0].decode().split()
    assert (f"{encoding} {argument}", int(number), process.returncode) == (shown, process.pid, 0)


def test_a_real_command_finds_towers_with_accents_in_any_locale(tmp_path: Path) -> None:
    """safetensors and tokenizers take paths in UTF-8 alone."""
    recipe = tiny_recipe(tmp_path / "t\u00e9" / "towers", Path("m.json"), tmp_path / "run", 1, None)
    bridge = build_stage1(parse_recipe(recipe), 32)
    (folder := tmp_path / "poids \u00e9").mkdir()
    save_weights(bridge, parse_recipe(recipe), 1, folder)
    command = [sys.executable, "-m", "pipeline.embed", "--weights", str(folder), "--text", "a red picture"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUTF8"}
    run = subprocess.run(
        [*command, "--output", str(tmp_path / "\u00e9.npz")],
        check=False,
        cwd=ROOT,
        env=environment | latin1_environment(tmp_path),
        capture_output=True,
        timeout=240,
    )
    assert run.returncode == 0 and (tmp_path / "\u00e9.npz").is_file(), run.stderr
