"""Killed at any point, racing with others, and run again: the samples and the bytes of an undisturbed run."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.shards import tar_files
from data_prep.shards.ledger import ledger_path, read_ledger
from data_prep.shards.receipts import finished_shards
from pipeline.files import PARTIAL_SUFFIX
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.tiny_shards import write_tiny_shards
from tests.support.web_folder import jpeg_bytes, make_web, served

UNEQUAL = ("summary.json", ".lock")
"""What tells of the run itself: seconds, who holds a task."""


def run_and_kill(kills: int, folder: Path, module: str, *arguments: object) -> dict[str, Any]:
    """Undisturbed in folder/0, killed and finished in folder/1, folder/2, ...; what was seen at the kills."""
    words = [sys.executable, "-m", "tests.support.kill_workers", kills, 7, folder, module, *arguments]
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(seen["states"]) >= kills
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(UNEQUAL)}


def check(folder: Path, turns: int, num_samples: int) -> None:
    """Every turn's folder holds the same files, byte for byte, and each sample once."""
    calm = contents(folder / "0")
    assert any(name.endswith(".receipt.json") for name in calm)
    for turn in range(1, turns):
        found = contents(folder / str(turn))
        assert found.keys() == calm.keys()
        assert found == calm
        keys = [each.key for tar in finished_shards(folder / str(turn)) for each in tar_files.read_samples(tar)]
        assert len(keys) == len(set(keys)) == num_samples


def phases(states: list[list[str]]) -> Counter[str]:
    """How far things were at the kills."""
    found = Counter[str]()
    for state in states:
        finished = {name.removesuffix(".receipt.json") for name in state if name.endswith(".receipt.json")}
        tars = {name.removesuffix(".tar") for name in state if name.endswith(".tar")}
        found["half written"] += any(name.endswith(PARTIAL_SUFFIX) for name in state)
        found["written without receipt"] += bool(tars - finished)
        found["some finished"] += bool(finished)
        found["nothing yet"] += not finished and not tars
    return found


def test_thirty_kills_of_capfilt_with_three_workers_racing(tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "raw", 24, samples_per_shard=2)
    models = ["--captioner", save_tiny_blip(tmp_path / "blip"), "--ranker", save_tiny_clip(tmp_path / "clip")]
    places = ["--input", tmp_path / "raw", "--output", "%d", "--device", "cpu", "--max-length", "8"]
    seen = run_and_kill(30, tmp_path / "out", "data_prep.capfilt", *places, *models, "--decode-threads", "1")
    found = phases(seen["states"])
    assert found["half written"] + found["written without receipt"] and found["some finished"], found
    check(tmp_path / "out", seen["turns"], 24)


def test_thirty_kills_of_a_download_of_local_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(36):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(jpeg_bytes(number))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("url", "caption"), *((f"{i}.jpg", f"picture {i}") for i in range(40))])
    places = ["table", "--input", tmp_path / "t.csv", "--images", tmp_path / "images", "--output", "%d"]
    tasks = ["--task-index", "%w", "--task-count", "3", "--samples-per-shard", "2", "--processes", "1"]
    seen = run_and_kill(30, tmp_path / "out", "data_prep.download", *places, *tasks)
    found = phases(seen["states"])
    assert found["half written"] + found["written without receipt"] and found["some finished"], found
    check(tmp_path / "out", seen["turns"], 36)


def kill_web_downloads(kills: int, folder: Path) -> None:
    routes: dict[str, dict[str, Any]] = {
        f"/{i}.jpg": {"behaviour": "slow", "file": f"images/{i}.jpg", "delay_s": 0.1} for i in range(30)
    }
    routes |= {f"/gone{i}.jpg": {"behaviour": "missing"} for i in range(3)}
    make_web(folder / "web", routes)
    with served(folder / "web", folder / "log") as base:
        with (folder / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("url", "caption"), *((base + path, f"picture {path}") for path in routes)])
        places = ["table", "--input", folder / "t.csv", "--output", "%d", "--allow-loopback", "--retries", "0"]
        tasks = ["--task-index", "%w", "--task-count", "3", "--samples-per-shard", "4", "--processes", "1"]
        seen = run_and_kill(kills, folder / "out", "data_prep.download", *places, *tasks, "--threads", "4")
    check(folder / "out", seen["turns"], 30)
    entries = [
        row for tar in finished_shards(folder / "out" / "1") for row in read_ledger(ledger_path(tar), ("row", "reason"))
    ]
    assert sorted(row["row"] for row in entries) == list(range(33))
    assert Counter(row["reason"] for row in entries) == {None: 30, "http_404": 3}
    left = [
        each.info["cmdline"]
        for each in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(each.info["cmdline"] or [])
    ]
    assert left == [], "img2dataset outlives the download that started it"


def test_kills_of_a_download_from_the_web(tmp_path: Path) -> None:
    kill_web_downloads(3, tmp_path)


@pytest.mark.large
def test_thirty_kills_of_a_download_from_the_web(tmp_path: Path) -> None:
    kill_web_downloads(30, tmp_path)
