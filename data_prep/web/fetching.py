"""Fetches the URLs of some rows with img2dataset behind the guard, and retries temporary failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.shards.ledger import Drop
from data_prep.tables.row import Place
from data_prep.web.fetch_worker import KILLED, LIMITS_VARIABLE
from data_prep.web.row_writer import read_results
from pipeline.command_line import printable
from pipeline.files import replace_file
from pipeline.web.guarded_opener import AGENT_TOKEN, FetchLimits

OPT_OUTS = ["noai", "noimageai", "noml", "noindex", "noimageindex", "none"]
"""Values of an X-Robots-Tag header that forbid the use of a picture."""
LARGEST_PART = 10_000
"""Rows of one of img2dataset's own shards; one of its processes works on one such shard at a time."""
LEAST_FREE_BYTES = 32 << 20
"""Fetching stops when less is free on the disk. If writes fail, img2dataset's processes hang until the time limit."""
POLL_S = 1.0
TIMED_OUT = 124
"""In the place of an exit code, as `timeout` has it."""
START_ALLOWANCE_S = 300
"""Seconds that img2dataset may take to start and stop, on a slow file system, before it counts as hung."""


@dataclass(frozen=True)
class FetchSettings:
    """How rows are fetched. `timeout_s` is for one socket operation, `deadline_s` for an image with its redirects."""

    timeout_s: float
    deadline_s: float
    retries: int
    backoff_s: float
    processes: int
    threads: int
    max_bytes: int
    user_agent: str
    allow_loopback: bool
    distributor: str = "multiprocessing"
    spark_master: str | None = None
    connections_per_host: int = 0
    robots: bool = False


def fetch(urls: dict[int, str], folder: Path, settings: FetchSettings) -> dict[int, Place | Drop]:
    """Row -> where its bytes are below `folder`, or why there are none; every row of `urls` gets an answer.

    Only rows that failed temporarily are fetched again, `settings.retries` times; each wait is twice the one before.
    Raises ValueError when img2dataset itself cannot run.
    """
    results: dict[int, Place | Drop] = {}
    pending = urls
    for attempt in range(settings.retries + 1):
        if attempt:
            time.sleep(settings.backoff_s * 2 ** (attempt - 1))
        found = _run_img2dataset(pending, folder / f"round_{attempt}", settings)
        results |= {row: found.get(row, Drop("lost_by_img2dataset")) for row in pending}
        pending = {row: urls[row] for row in pending if _is_temporary(results[row])}
        if not pending:
            break
    return results


def _is_temporary(result: Place | Drop) -> bool:
    return isinstance(result, Drop) and result.temporary


def _run_img2dataset(urls: dict[int, str], folder: Path, settings: FetchSettings) -> dict[int, Place | Drop]:
    """Run img2dataset once, on a table of its own, into a folder of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    pq.write_table(pa.table({"url": list(urls.values()), "row": list(urls)}), folder / "urls.parquet")
    processes = max(1, min(settings.processes, len(urls) // 64))
    part = min(LARGEST_PART, -(-len(urls) // processes))
    options = {
        "url_list": str(folder / "urls.parquet"),
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": ["row"],
        "output_folder": str(folder / "fetched"),
        "output_format": "dummy",  # fetch_worker puts RowWriter in its place
        "disable_all_reencoding": True,
        "extract_exif": False,
        "compute_hash": None,
        "processes_count": processes,
        "thread_count": settings.threads,
        "number_sample_per_shard": part,
        "timeout": settings.timeout_s,
        "retries": 0,
        "user_agent_token": AGENT_TOKEN,
        "disallowed_header_directives": OPT_OUTS,
        "distributor": settings.distributor,
    }
    spark_master = settings.spark_master or f"local[{processes}]"
    (folder / "settings.json").write_text(
        json.dumps({"img2dataset": options, "spark_master": spark_master}), encoding="utf-8"
    )
    waits = -(-part // settings.threads) * -(-len(urls) // (part * processes))
    code = _run_worker(folder, settings, START_ALLOWANCE_S + waits * settings.deadline_s)
    if code in (KILLED, -signal.SIGKILL):
        raise ValueError(
            f"--processes {processes}: a process of img2dataset was killed by signal 9, probably because memory ran "
            "out; run again with fewer --processes or --threads"
        )
    found = dict(read_results(folder / "fetched"))
    if len(found) < len(urls):
        check_disk(folder)
    if not found:
        log = folder / "log.txt"
        tail = _cleaned(log)[-1:]
        raise ValueError(f"{log}: img2dataset ended with {code} and without a result ({' '.join(tail)}); read this log")
    return found


def _cleaned(log: Path) -> list[str]:
    """The log's lines, in which servers may have put control characters for the terminal that shows it."""
    lines = [printable(line) for line in log.read_text(errors="replace", encoding="utf-8").strip().splitlines()]
    replace_file(log, "\n".join(lines) + "\n")
    return lines


def _run_worker(folder: Path, settings: FetchSettings, timeout_s: float) -> int:
    """Run the worker and its children to their end. At the time limit, on a signal or an error they are killed."""
    per_host = settings.connections_per_host and max(1, settings.connections_per_host // settings.processes)
    limits = FetchLimits(
        settings.user_agent,
        settings.deadline_s,
        settings.max_bytes,
        settings.allow_loopback,
        per_host,
        settings.robots,
    )
    command = [sys.executable, "-m", "data_prep.web.fetch_worker", str(folder / "settings.json")]
    with (folder / "log.txt").open("wb") as log:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(limits),
            start_new_session=True,
        )
        try:
            return _watched(worker, folder, time.monotonic() + timeout_s)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()


def _watched(worker: subprocess.Popen[bytes], folder: Path, deadline: float) -> int:
    """The exit code of the worker; TIMED_OUT at the deadline. Raises ValueError when the disk is full."""
    while time.monotonic() < deadline:
        try:
            return worker.wait(POLL_S)
        except subprocess.TimeoutExpired:
            check_disk(folder)
    return TIMED_OUT


def check_disk(folder: Path) -> None:
    """Raises ValueError when less than LEAST_FREE_BYTES are free below `folder`."""
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        raise ValueError(
            f"{folder}: the disk is full (less than {LEAST_FREE_BYTES >> 20} MiB free); free some space and run again"
        )


def _environment(limits: FetchLimits) -> dict[str, str]:
    """This process's environment, with variables that stop img2dataset's imports from sending data home."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": path,
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        LIMITS_VARIABLE: json.dumps(asdict(limits)),
    }
