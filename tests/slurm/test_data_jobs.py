"""The arrays of download and CapFilt on a real SLURM: a node dies, a task is killed or stopped, and nothing is lost."""

import csv
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import capfilt, download
from data_prep.shards import tar_files
from data_prep.shards.ledger import ledger_path, read_ledger
from data_prep.shards.receipts import finished_shards
from tests.support.slurm_cluster import Cluster
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.tiny_shards import write_tiny_shards
from tests.support.web_folder import make_web, served

ROOT = Path(__file__).parents[2]
PORT = 8093
TASKS = 3
SMALL = ["--cpus-per-task=1", "--gpus-per-node=0", f"--array=0-{TASKS - 1}"]


def site(folder: Path) -> dict[str, str]:
    """What cluster.env says: this repository, and a data folder of the test's own."""
    home = folder / "home"
    home.mkdir()
    for name in ("data_prep", "pipeline", "slurm"):
        (home / name).symlink_to(ROOT / name)
    (home / ".venv").symlink_to(sys.prefix)
    return {"BLIP2_HOME": str(home), "BLIP2_DATA": str(folder / "data"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def submit(cluster: Cluster, folder: Path, where: dict[str, str], script: str, *arguments: object) -> str:
    output = f"--output={folder}/{script}-%a.out"
    command = ["sbatch", "--parsable", *SMALL, output, str(ROOT / "slurm" / f"{script}.sbatch"), *map(str, arguments)]
    done = cluster.run(command, where, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.out")))


def wait_for_files(folder: Path, pattern: str, count: int) -> None:
    end = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < end, f"{folder}: no {count} of {pattern}"
        time.sleep(0.05)


def wait_until_all_work(folder: Path) -> None:
    """Until every task has printed its settings."""
    end = time.monotonic() + 120
    while len([path for path in folder.glob("*.out") if path.stat().st_size]) < TASKS:
        assert time.monotonic() < end, outputs(folder)
        time.sleep(0.05)


@pytest.fixture
def web_on_every_node(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A web of 48 pictures and 3 pages that are gone, served on each node's own loopback interface."""
    routes: dict[str, dict[str, Any]] = {
        f"/{number}.jpg": {"behaviour": "slow", "file": f"images/{number}.jpg", "delay_s": 0.5} for number in range(48)
    }
    make_web(tmp_path / "web", routes)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        paths = [*routes, *(f"/gone{number}.jpg" for number in range(3))]
        csv.writer(file).writerows([("url", "caption"), *((f"http://127.0.0.1:{PORT}{path}", path) for path in paths)])
    serve = f"cd {ROOT} && exec {sys.executable} -m data_prep.miniature.server --root {tmp_path}/web --port {PORT}"
    servers = []
    for node in range(1, 6):
        options = [f"--nodelist=node{node}", "--no-requeue", f"--output={tmp_path}/server{node}.log", f"--wrap={serve}"]
        servers.append(cluster.answer("sbatch", "--parsable", *options).strip())
    for node in range(1, 6):
        wait_for_files(tmp_path, f"server{node}.log", 1)
    yield tmp_path
    cluster.answer("scancel", *servers)


def restart(cluster: Cluster, node: str) -> None:
    """Switch a crashed node on again, for the tests to come."""
    cluster.act("start", node)
    end = time.monotonic() + 90
    while cluster.answer("sinfo", "-h", "-N", "-n", node, "-o", "%T").split()[0] not in ("idle", "mixed", "allocated"):
        assert time.monotonic() < end, cluster.answer("sinfo")
        time.sleep(0.5)


def test_a_download_array_loses_a_node_and_no_row(cluster: Cluster, web_on_every_node: Path) -> None:
    folder = web_on_every_node
    where = site(folder)
    options = ["--allow-loopback", "--samples-per-shard", "3", "--threads", "2", "--retries", "0"]
    job = submit(cluster, folder, where, "download", "table", folder / "t.csv", *options)
    raw = folder / "data" / "raw" / "table"
    wait_for_files(raw, ".table-001.work/*/round_0/fetched/*", 1)
    node = cluster.facts(f"{job}_1")["NodeList"]
    cluster.act("crash", node)
    for task in range(TASKS):
        facts = cluster.wait_until_ended(f"{job}_{task}")
        assert facts["JobState"] == "COMPLETED", outputs(folder)
        assert task != 1 or (int(facts["Restarts"]) >= 1 and facts["NodeList"] != node)
    restart(cluster, node)
    entries = [row for tar in finished_shards(raw) for row in read_ledger(ledger_path(tar), ("row", "reason"))]
    assert sorted(row["row"] for row in entries) == list(range(51))
    assert Counter(row["reason"] for row in entries) == {None: 48, "http_404": 3}
    with served(folder / "web") as base:  # the same pictures, undisturbed, in this process
        table = folder / "here.csv"
        table.write_text((folder / "t.csv").read_text().replace(f"http://127.0.0.1:{PORT}", base))
        arguments = ["table", "--input", str(table), "--output", str(folder / "calm"), *options, "--processes", "1"]
        assert download.main(arguments) == 0
    assert pictures(raw) == pictures(folder / "calm")


def pictures(folder: Path) -> Counter[tuple[str, str]]:
    """(caption, sha256) of every sample."""
    samples = [each for tar in finished_shards(folder) for each in tar_files.read_samples(tar)]
    return Counter((each.record["captions"][0], each.record["sha256"]) for each in samples)


def test_a_capfilt_array_with_a_task_killed_and_one_stopped_ends_as_undisturbed(
    cluster: Cluster, tmp_path: Path
) -> None:
    where = site(tmp_path)
    raw, output = tmp_path / "data" / "raw" / "tiny", tmp_path / "data" / "captioned" / "tiny"
    write_tiny_shards(raw, 240, samples_per_shard=10)
    weights = [save_tiny_blip(tmp_path / "blip"), save_tiny_clip(tmp_path / "clip")]
    options = ["--device", "cpu", "--max-length", "10", "--lease-s", "4"]
    job = submit(cluster, tmp_path, where, "capfilt", "tiny", *weights, *options)
    wait_until_all_work(tmp_path)
    [killed] = cluster.answer(
        "pgrep", "-f", f"^\\S*python -m data_prep.capfilt --input {raw} .*--task-index 1 "
    ).split()
    cluster.answer("kill", "-KILL", killed)
    cluster.answer("scancel", "--signal=USR1", "--batch", f"{job}_2")
    states = [cluster.wait_until_ended(f"{job}_{task}") for task in range(TASKS)]
    assert [facts["JobState"] for facts in states] == ["COMPLETED", "FAILED", "COMPLETED"], outputs(tmp_path)
    assert [facts["Restarts"] for facts in states] == ["0", "0", "1"]
    assert "stopped on a signal: requeued" in (tmp_path / "capfilt-2.out").read_text()
    again = submit(cluster, tmp_path, where, "capfilt", "tiny", *weights, *options)
    for task in range(TASKS):
        assert cluster.wait_until_ended(f"{again}_{task}")["JobState"] == "COMPLETED", outputs(tmp_path)
    places = ["--input", str(raw), "--output", str(tmp_path / "calm")]
    assert capfilt.main([*places, "--captioner", str(weights[0]), "--ranker", str(weights[1]), *options]) == 0
    found, calm = ({path.name: path.read_bytes() for path in each.iterdir()} for each in (output, tmp_path / "calm"))
    assert found == calm
