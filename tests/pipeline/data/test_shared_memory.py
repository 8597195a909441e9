"""A /dev/shm that is too small ends a run in one line, at once: a batch would be lost, and its rank would wait."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_runs import ROOT
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import save_tiny_bert

LOADS = """
import sys
from pathlib import Path
from pipeline.config import QFormer, parse_recipe
from pipeline.data.batch import collate_for_qformer
from pipeline.data.loader import WorkerError, build_loader, open_source
from pipeline.models.build import build_tokenizer

recipe = parse_recipe({"stage": 1, "vision": {"name": "x", "image_size_px": 224}, "qformer": {"bert": sys.argv[2]},
    "data": {"manifest": sys.argv[1], "num_workers": 1}, "batch": {"global_size": 8, "micro_size": 8},
    "run": {"output": "none", "steps": 2}})
collate = collate_for_qformer(build_tokenizer(recipe.qformer), 8)
try:
    for batch in build_loader(recipe, open_source(recipe, 1), collate, 0, 1, 0):
        print(tuple(batch.pixels_B3SS.shape), batch.pixels_B3SS.is_shared(), flush=True)
except WorkerError as error:
    from pipeline.command_line import one_line
    print(one_line(error))
"""


def test_too_little_shared_memory_is_one_line(tmp_path: Path) -> None:
    manifest, bert = tiny_manifest(tmp_path, 8), save_tiny_bert(tmp_path / "bert")
    program = tmp_path / "loads.py"
    program.write_text(LOADS)
    command = [sys.executable, str(program), str(manifest), bert]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    whole = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=120)
    assert whole.stdout.splitlines() == ["(8, 3, 224, 224) True"] * 2
    inside = 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"'
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("may not make a mount namespace here")
    shell = ["unshare", "-m", "bash", "-c", inside, "bash"]
    done = subprocess.run([*shell, *command], check=True, capture_output=True, text=True, env=environment, timeout=120)
    [line] = done.stdout.splitlines()
    assert line.startswith("data.num_workers 1: /dev/shm has no room for a batch (") and "--shm-size" in line
