"""Resuming in the middle of an epoch of 129 million samples in 13,000 shards, in a fresh process: ids, memory, time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config import Data
from pipeline.data.manifest import Manifest, Shard, load_manifest, manifest_json
from pipeline.data.mixture import build_order
from pipeline.data.order import MicroBatches, generator_of
from tests.support.tiny_shards import tiny_sample, write_tiny_shards

ROOT = Path(__file__).parents[3]
SHARDS, SAMPLES = 13_000, 129_000_000
TARS, ROWS = 13, 8  # real ones: shard i of the manifest reads tar i mod 13, and its row r that tar's row r mod 8
GLOBAL_SIZE, MICRO_SIZE, WORLD_SIZE, RANK, SHUFFLE_SHARDS = 1680, 105, 16, 5, 64
STEP = SAMPLES // GLOBAL_SIZE * 3 // 2  # in the middle of the second epoch
WEIGHTS = {"laion400m": 0.5, "coco": 4.0}
SOURCES = [("laion400m", 0), ("cc12m", 11_500), ("cc3m", 12_700), ("coco", 12_990)]  # and the first shard of each
MOST_MEMORY_MB = 500

PROBE = """
import json, sys, time
start = time.perf_counter()
times_s, peaks_kb = {}, {}
def mark(name):
    times_s[name] = round(time.perf_counter() - start, 2)
    status = Path("/proc/self/status").read_text()  # getrusage's maximum begins with that of the process that forked
    peaks_kb[name] = int(status.partition("VmHWM:")[2].split()[0])
from pathlib import Path
from pipeline.config import load_recipe
from pipeline.data.manifest import load_manifest
from pipeline.data.mixture import build_order
from pipeline.data.order import MicroBatches
recipe, step, rank, world_size = load_recipe(Path(sys.argv[1])), *map(int, sys.argv[2:])
mark("imports")
manifest = load_manifest(recipe.data.manifest)
digest = manifest.digest()
mark("manifest and digest")
order, batch = build_order(manifest, recipe.data, recipe.seed), recipe.batch
places = MicroBatches(
    order.samples, batch.global_size, batch.micro_size, rank, world_size, step, recipe.run.steps
)
located = [order.locate(*place) for place in next(iter(places))]
mark("first batch's ids")
assert "torch" not in sys.modules  # which alone takes more than the bound: of this, no more than of the order
import torchvision.io
from pipeline.data.loader import build_loader, open_source
mark("imports of torch")
batches = iter(build_loader(
    recipe, open_source(recipe, world_size), lambda samples: [sample.key for sample in samples], rank, world_size, step
))
found = next(batches)
mark("first batch, decoded")
print(json.dumps({"keys": found, "located": located, "digest": digest, "times_s": times_s, "peaks_kb": peaks_kb}))
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest as `data_prep.index` writes it, of the paper's size; every sample of it can be read."""
    folder = tmp_path_factory.mktemp("large")
    write_tiny_shards(folder / "real", TARS * ROWS, samples_per_shard=ROWS)
    from data_prep.shards.offsets import offset_table

    tars = sorted((folder / "real").glob("*.tar"))
    sizes = [SAMPLES // SHARDS + (shard < SAMPLES % SHARDS) for shard in range(SHARDS)]
    for tar in tars:
        for size in set(sizes):
            np.save(folder / f"{tar.stem}-{size}.npy", offset_table(tar)[np.arange(size) % ROWS])
    shards = []
    for number, size in enumerate(sizes):
        tar = tars[number % TARS]
        source = next(name for name, first in reversed(SOURCES) if first <= number)
        provenance = {
            "stage": "capfilt",
            "input_sha256": f"{number:064x}",
            "config_hash": "c" * 64,
            "seed": 42,
            "models": {"captioner": "d" * 64, "ranker": "e" * 64},
            "dropped": {"low_score": 120, "duplicate": 14, "too_small": 77},
        }
        index = f"{tar.stem}-{size}.npy"
        shards.append(Shard(f"real/{tar.name}", index, source, 10**9, f"{number * 7:064x}", size, 2 * size, provenance))
    (folder / "train.json").write_text(manifest_json(shards))
    return folder / "train.json"


def plain_order(manifest: Manifest, seed: int, epoch: int, positions: list[int]) -> list[tuple[int, int]]:
    """The documented rule, block by block from the begin of the epoch."""
    digest, located = manifest.digest(), {}
    shards = generator_of(digest, seed, epoch, "shards").permutation(len(manifest.shards))
    begin = 0
    for block, first in enumerate(range(0, len(shards), SHUFFLE_SHARDS)):
        of_block = shards[first : first + SHUFFLE_SHARDS]
        size = sum(manifest.shards[shard].samples for shard in of_block)
        if any(begin <= position < begin + size for position in positions):
            samples = [(int(shard), row) for shard in of_block for row in range(manifest.shards[shard].samples)]
            rows = generator_of(digest, seed, epoch, "block", block).permutation(size)
            located |= {p: samples[rows[p - begin]] for p in positions if begin <= p < begin + size}
        begin += size
    return [located[position] for position in positions]


@pytest.mark.parametrize(("weights", "num_workers"), [(None, 0), (None, 2), (WEIGHTS, 0)])
def test_a_resume_into_the_middle_reads_its_first_batch_within_500_mb(
    manifest: Path, tmp_path: Path, weights: dict[str, float] | None, num_workers: int
) -> None:
    data = {"manifest": str(manifest), "num_workers": num_workers, "source_weights": weights}
    recipe: dict[str, Any] = {"stage": 1, "seed": 3, "vision": {"name": "x", "image_size_px": 32}, "data": data}
    recipe |= {
        "batch": {"global_size": GLOBAL_SIZE, "micro_size": MICRO_SIZE},
        "run": {"output": "x", "steps": 250_000},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    arguments = [sys.executable, "-c", PROBE, str(path), *map(str, (STEP, RANK, WORLD_SIZE))]
    run = subprocess.run(arguments, check=False, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    peaks_mb = {name: kilobytes // 1000 for name, kilobytes in found["peaks_kb"].items()}
    print(f"weights {weights}, {num_workers} workers: after {found['times_s']} s, at most {peaks_mb} MB")

    listed = load_manifest(manifest)
    assert (listed.samples, len(listed.shards), found["digest"]) == (SAMPLES, SHARDS, listed.digest())
    order = build_order(listed, Data(manifest=manifest, source_weights=weights), 3)
    [places, *_] = MicroBatches(order.samples, GLOBAL_SIZE, MICRO_SIZE, RANK, WORLD_SIZE, STEP, STEP + 1)
    located = [order.locate(*place) for place in places]
    if weights is None:
        assert {epoch for epoch, _ in places} == {1}
        assert located == plain_order(listed, 3, 1, [position for _, position in places])
    keys = [[tiny_sample(tar * ROWS + row, 0, 1, "web", "tiny").key for row in range(ROWS)] for tar in range(TARS)]
    assert [tuple(place) for place in found["located"]] == located and len(set(located)) == MICRO_SIZE
    assert found["keys"] == [keys[shard % TARS][row % ROWS] for shard, row in located]
    assert peaks_mb["first batch's ids"] < MOST_MEMORY_MB
    assert peaks_mb["first batch, decoded"] - peaks_mb["imports of torch"] < MOST_MEMORY_MB
