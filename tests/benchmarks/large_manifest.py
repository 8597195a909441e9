"""Index, open and verify a manifest of 13,000 shards: seconds and memory, and what 129 million samples would take.

    python -m tests.benchmarks.large_manifest [--shards 13000] [--samples-per-shard 100] [--workers 2] [--folder DIR]

Writes real shards of tiny samples (2.5 kB each, which bounds the time by samples, not by bytes), runs the commands as a
user does, and opens the manifest in a fresh process. The keys of 129 million samples are compared in memory as verify
compares them. What was measured is printed beside what follows from it by multiplication, named so.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data_prep.captioning.selection import Candidate, Verdict
from data_prep.captioning.side_table import write_side_table
from data_prep.shards import tar_files
from data_prep.shards.receipts import Receipt, write_receipt
from data_prep.shards.tar_files import Sample
from tests.support.tiny_shards import tiny_sample

SAMPLES = 129_000_000
MAKING = {"sampling": {"seed": 1, "num_captions": 10}, "models": {}}
MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""
OPEN = """
import sys
from pathlib import Path
from pipeline.data.manifest import load_manifest
manifest = load_manifest(Path(sys.argv[1]))
assert manifest.samples
"""
COMPARE_KEYS = """
import sys
import numpy as np
from data_prep.auditing.manifest_checks import shards_with_known_keys
samples, shards = int(sys.argv[1]), 13_000
draw = np.random.default_rng(0)
keys = [draw.integers(0, 1 << 64, samples // shards, np.uint64) for _ in range(shards)]
keys[-1][0] = keys[7][3]
assert shards_with_known_keys(keys) == {7: {int(keys[7][3])}}
"""


def samples_of(shard: int, count: int, template: Sample) -> Iterator[Sample]:
    """One picture under many keys: what is scanned and parsed is as much as of different ones."""
    for number in range(count):
        key = f"laion400m_{hashlib.sha256(f'{shard}/{number}'.encode()).hexdigest()[:16]}"
        yield Sample(key, template.jpeg, template.record | {"key": key})


def candidates_of(sample: Sample) -> list[Verdict]:
    """Ten candidates and the web caption, of which the sample's captions were kept."""
    captions = sample.record["captions"] + [f"another caption of it, number {number}" for number in range(9)]
    return [
        Verdict(Candidate(place, caption, "synthetic" if place < 10 else "web", 0.1), place if place < 2 else None, "")
        for place, caption in enumerate(captions)
    ]


def write_shards(folder: Path, shards: int, samples: int) -> None:
    template = tiny_sample(0, 0, 2, "synthetic", "laion400m")
    for shard in range(shards):
        tar = folder / f"laion400m-{shard:08d}-{shards}.tar"
        written = list(samples_of(shard, samples, template))
        totals = tar_files.write_shard(tar, written)
        write_side_table(tar, {each.key: candidates_of(each) for each in written}, MAKING, totals.sha256)
        models = {"captioner": "Salesforce/blip-image-captioning-large", "ranker": "openai/clip-vit-large-patch14"}
        dropped = {"captions below the score": 31, "duplicate": 17, "near duplicate": 12}
        write_receipt(
            tar,
            Receipt(
                "capfilt",
                totals.sha256,
                totals.sha256,
                totals.sha256,
                totals.bytes,
                totals.samples,
                totals.captions,
                1,
                models,
                dropped,
            ),
        )


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds of the clock, of the processors, and the largest process's peak memory in MB, in fresh processes."""
    output = subprocess.run([sys.executable, "-c", MEASURED, *command], check=True, capture_output=True, text=True)
    code, clock_s, processor_s, peak_mb = map(float, output.stdout.split())
    if code:
        raise SystemExit(f"{' '.join(command)} failed\n{output.stderr}")
    return clock_s, processor_s, peak_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=13_000)
    parser.add_argument("--samples-per-shard", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the shards (2.5 kB a sample); a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root, started = Path(name), time.perf_counter()
        write_shards(root / "shards", options.shards, options.samples_per_shard)
        count, manifest = options.shards * options.samples_per_shard, root / "train.json"
        print(f"wrote {options.shards} shards, {count} samples in {time.perf_counter() - started:.0f} s", flush=True)
        module, workers = [sys.executable, "-m"], ["--workers", str(options.workers)]
        steps = {
            "index": [*module, "data_prep.index", str(root / "shards"), "--output", str(manifest), *workers],
            "verify": [*module, "data_prep.verify", str(manifest), *workers],
            "open": [sys.executable, "-c", OPEN, str(manifest)],
            "compare 129M keys": [sys.executable, "-c", COMPARE_KEYS, str(SAMPLES)],
        }
        for step, command in steps.items():
            clock_s, processor_s, peak_mb = measure(command)
            line = {
                "step": step,
                "seconds": round(clock_s, 2),
                "processor_s": round(processor_s, 2),
                "peak_mb": round(peak_mb),
            }
            if step in ("index", "verify"):
                line |= {"processor_us_a_sample": round(processor_s / count * 1e6, 1)}
                line |= {"by_multiplication_129M_processor_hours": round(processor_s / count * SAMPLES / 3600, 2)}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
