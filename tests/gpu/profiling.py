"""Part 7: a profile of stage 1's steps: the kernels that take most, how busy the GPU is, and where it waits.

Leaves `profile_kernels.json`, the longest kernels, and `profile_trace.json.gz`, which Perfetto opens.
"""

import gzip
import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

from torch.profiler import ProfilerActivity, profile

from pipeline.data.batch import Batch
from tests.gpu.checks import Checks, wait_for
from tests.gpu.stepping import Steps

STEPS, TOP, GAP_US = 3, 60, 50.0
MOST_TRACE_BYTES = 16 * 2**20
DEVICE_WORK = {"cuda": ("kernel", "gpu_memcpy", "gpu_memset"), "cpu": ("cpu_op",)}


def profiled(checks: Checks, steps: Steps, batches: list[Batch]) -> None:
    """Profile some steps, report, and leave both files in the part's folder."""
    steps.feed_again_and_again(batches)
    for _ in range(3):
        steps.step()
    wait_for(checks.device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if checks.device == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        for _ in range(STEPS):
            steps.step()
        wait_for(checks.device)
    path = checks.output / "profile_trace.json"
    profiler.export_chrome_trace(str(path))
    report(checks, json.loads(path.read_text())["traceEvents"])
    packed = path.with_suffix(".json.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), compresslevel=4))
    path.unlink()
    checks.at_most("profile: trace, MiB", packed.stat().st_size / 2**20, MOST_TRACE_BYTES / 2**20)


def report(checks: Checks, events: list[dict[str, Any]]) -> None:
    """From a trace's events: what ran on the device, how long, and the gaps between."""
    work = [each for each in events if each.get("cat") in DEVICE_WORK[checks.device] and "dur" in each]
    work.sort(key=lambda each: float(each["ts"]))
    checks.at_least("profile: pieces of work on the device in a step", len(work) / STEPS, 100)
    spans = merged([(float(each["ts"]), float(each["ts"]) + float(each["dur"])) for each in work])
    busy, whole = sum(end - begin for begin, end in spans), spans[-1][1] - spans[0][0]
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    long_gaps = [gap for gap in gaps if gap > GAP_US]
    checks.figure("profile: pieces of work on the device in a step, at most", len(work) / STEPS, most=6000)
    checks.figure("profile: busy share of the GPU", busy / whole, least=0.90)
    checks.figure("profile: gaps above 50 us in a step", len(long_gaps) / STEPS, most=40)
    checks.figure("profile: share of the time in such gaps", sum(long_gaps) / whole, most=0.08)
    checks.figure("profile: milliseconds a step", whole / STEPS / 1000, most=200)
    longest(checks, work, busy)


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans in order of their begin, those that overlap as one."""
    found: list[tuple[float, float]] = []
    for begin, end in spans:
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def longest(checks: Checks, work: list[dict[str, Any]], busy: float) -> None:
    """The table of the longest kernels: a file, and that a few of them explain most of the time."""
    times: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for each in work:
        times[each["name"]] += float(each["dur"])
        counts[each["name"]] += 1
    top = sorted(times, key=lambda name: -times[name])[:TOP]
    rows = [
        {"kernel": name, "ms_a_step": round(times[name] / STEPS / 1000, 4), "times_a_step": counts[name] / STEPS}
        for name in top
    ]
    (checks.output / "profile_kernels.json").write_text(json.dumps(rows, indent=1))
    checks.at_least(
        f"profile: share of the {TOP} longest kernels in all work", sum(times[name] for name in top) / busy, 0.8
    )
