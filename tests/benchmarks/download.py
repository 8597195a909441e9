"""Images a second and core of the guarded download beside img2dataset alone, on a loopback web: what safety costs.

    python -m tests.benchmarks.download [--images 4000] [--rounds 2] [--side-px 400]

Each runs as its user runs it: `data_prep.download` with its guard, ledger, stored JPEGs, hashes and receipts, and
img2dataset's own command line with webdataset output, resized alike (shorter side 256, JPEG quality 95), both with one
process and the same threads. `guarded fetch` is img2dataset behind the guard, without storing. Each runs over a quarter
of the pictures and over all, and the difference counts, as starting takes seconds. Prints one JSON line; CPU
seconds are those of the process and its children, without the web server's.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.web.fetching import FetchSettings, fetch
from tests.support.web_folder import jpeg_bytes

DISTINCT = 50


def make_pictures(root: Path, images: int, side_px: int) -> list[str]:
    """Routes to `images` pictures of which some are distinct; their paths."""
    (root / "images").mkdir(parents=True)
    for number in range(DISTINCT):
        (root / "images" / f"{number}.jpg").write_bytes(jpeg_bytes(number, side_px * 4 // 3, side_px))
    routes = {
        f"/{number}.jpg": {"behaviour": "ok", "file": f"images/{number % DISTINCT}.jpg"} for number in range(images)
    }
    (root / "routes.json").write_text(json.dumps(routes))
    return list(routes)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process and its ended children."""

    def spent() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in both)

    before = spent()
    work()
    return spent() - before


def rates(images: int, rounds: int, works: Mapping[str, Callable[[int, int], object]]) -> dict[str, dict[str, float]]:
    """Images a second of one core, between a run over a quarter of them and one over all, and what starting takes.

    Every round runs all works, and the smallest CPU times count: other work on the machine makes them larger.
    """
    counts = (images // 4, images)
    least = dict.fromkeys(((name, count) for name in works for count in counts), float("inf"))
    for number in range(rounds):
        for name, count in least:
            least[name, count] = min(least[name, count], cpu_s(partial(works[name], count, number)))
    found = {}
    for name in works:
        few, whole = (least[name, count] for count in counts)
        each = (whole - few) / (images - images // 4)
        found[name] = {"images_per_core_s": round(1 / each, 1), "start_cpu_s": round(few - each * (images // 4), 1)}
    return found


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]


def measure(options: argparse.Namespace, folder: Path, base: str, paths: list[str]) -> dict[str, Any]:
    threads, root = str(options.threads), Path(__file__).parents[2]

    def table(images: int) -> str:
        with (folder / f"{images}.csv").open("w", newline="") as file:
            lines = [(base + path, f"a picture {path}") for path in paths[:images]]
            csv.writer(file).writerows([("url", "caption"), *lines])
        return file.name

    def guarded(images: int, number: int) -> None:
        places = ["--input", table(images), "--output", str(folder / f"ours{images}-{number}")]
        more = ["--allow-loopback", "--processes", "1", "--threads", threads, "--retries", "0"]
        run([sys.executable, "-m", "data_prep.download", "table", *places, *more], root)

    def alone(images: int, number: int) -> None:
        places = ["--url_list", table(images), "--output_folder", str(folder / f"theirs{images}-{number}")]
        kinds = [
            "--input_format",
            "csv",
            "--url_col",
            "url",
            "--caption_col",
            "caption",
            "--output_format",
            "webdataset",
        ]
        sizes = [
            "--resize_mode",
            "keep_ratio",
            "--image_size",
            "256",
            "--encode_quality",
            "95",
            "--enable_wandb",
            "False",
        ]
        program = str(Path(sys.executable).with_name("img2dataset"))
        run([program, *places, *kinds, *sizes, "--processes_count", "1", "--thread_count", threads], folder)

    def guarded_fetch(images: int, number: int) -> None:
        place = folder / f"fetched{images}-{number}"
        place.mkdir()
        settings = FetchSettings(10.0, 60.0, 0, 1.0, 1, options.threads, 20_000_000, "benchmark", True)
        fetch({row: base + path for row, path in enumerate(paths[:images])}, place, settings)

    guarded_fetch(len(paths) // 8, 0)  # this process then has imported what it needs
    works = {"img2dataset alone": alone, "guarded fetch": guarded_fetch, "guarded download": guarded}
    results = rates(len(paths), options.rounds, works)
    ours, theirs = results["guarded download"]["images_per_core_s"], results["img2dataset alone"]["images_per_core_s"]
    return {
        "images": len(paths),
        "side_px": options.side_px,
        **results,
        "rate beside img2dataset": round(ours / theirs, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--side-px", type=int, default=400, help="shorter side of the pictures served")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_pictures(folder / "web", options.images, options.side_px)
        command = [sys.executable, "-m", "data_prep.miniature.server", "--root", str(folder / "web"), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            base = server.stdout.readline().split()[-1]
            try:
                print(json.dumps(measure(options, folder, base, paths)))
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
