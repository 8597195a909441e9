"""One worker at a time holds a lease; the dead lose theirs; clocks do not matter."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from data_prep.shards import leases
from data_prep.shards.leases import Leases
from pipeline.files import remove_partials

HOLD = """
import sys, time
from pathlib import Path
from data_prep.shards.leases import Leases
lease = Leases(Path(sys.argv[1]), 60.0).take("shard")
assert lease is not None
lease.__enter__()
print("held", flush=True)
time.sleep(60)
"""


def hold_in_another_process(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_held_lease_is_refused_to_others_and_free_after(tmp_path: Path) -> None:
    first = Leases(tmp_path, 60.0).take("shard")
    assert first is not None
    with first:
        assert first.held() and Leases(tmp_path, 60.0).take("shard") is None
        other = Leases(tmp_path, 60.0).take("another")
        assert other is not None
    assert not first.held()
    with Leases(tmp_path, 60.0).take("shard") or pytest.fail("the lease was not given back"):
        pass


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    process = hold_in_another_process(tmp_path)
    watcher = Leases(tmp_path, 60.0)
    assert watcher.take("shard") is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stolen = watcher.take("shard")
    assert stolen is not None and stolen.held()


@pytest.mark.parametrize("clock_error_s", [-3600, 0, 3600])
def test_a_lease_from_elsewhere_is_stolen_when_its_heartbeat_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock_error_s: int
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases, "_host", lambda: "another machine")
        lost = Leases(tmp_path, 60.0).take("shard")
    assert lost is not None
    stamp = time.time() + clock_error_s
    os.utime(lost.path, (stamp, stamp))
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watcher = Leases(tmp_path, 10.0)
    assert watcher.take("shard") is None
    now += 9.0
    assert watcher.take("shard") is None
    os.utime(lost.path, (stamp + 5, stamp + 5))  # a heartbeat: the wait starts again
    now += 2.0
    assert watcher.take("shard") is None
    now += 11.0
    stolen = watcher.take("shard")
    assert stolen is not None and stolen.held() and not lost.held()


def test_the_heartbeat_keeps_a_lease_from_being_stolen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(leases, "_host", lambda: "another machine")
        lease = Leases(tmp_path, 0.2).take("shard")
    assert lease is not None
    watcher = Leases(tmp_path, 1.5)
    with lease:
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            assert watcher.take("shard") is None
            time.sleep(0.1)


def test_giving_back_a_stolen_lease_leaves_the_thiefs(tmp_path: Path) -> None:
    lease = Leases(tmp_path, 60.0).take("shard")
    assert lease is not None
    with lease:
        lease.path.unlink()
        thief = Leases(tmp_path, 60.0).take("shard")
        assert thief is not None
    assert thief.held()


OWNER = {"token": "t", "host": leases._host(), "started": "1"}


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "[" * 100_000, "\0", *(json.dumps(OWNER | {"pid": pid}) for pid in ("abc", None, 1.5, [])), None],
)
def test_a_damaged_lease_is_stolen_after_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is None:
        (tmp_path / "shard.lease").symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / "shard.lease").write_text(content)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watcher = Leases(tmp_path, 10.0)
    assert watcher.take("shard") is None
    now = 11.0
    stolen = watcher.take("shard")
    assert stolen is not None and stolen.held()


def test_a_folder_in_a_leases_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "shard.lease").mkdir()
    with pytest.raises(ValueError, match=r"shard\.lease: is a folder, but"):
        Leases(tmp_path, 10.0).take("shard")
    assert (tmp_path / "shard.lease").is_dir()


def _claim_all(folder: str, names: list[str], barrier: Barrier, results: Any) -> None:
    watcher = Leases(Path(folder), 60.0)
    barrier.wait()
    results.put([name for name in names if watcher.take(name) is not None])
    barrier.wait()  # nobody ends, and frees what it holds, before all have tried


def test_racing_workers_never_share_a_lease(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    names, barrier, results = [f"shard-{number}" for number in range(60)], context.Barrier(4), context.Queue()
    workers = [context.Process(target=_claim_all, args=(str(tmp_path), names, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    claimed = [name for _ in workers for name in results.get(timeout=30)]
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(names)
    assert not list(tmp_path.glob(".*"))


def test_a_claim_that_the_holder_clears_away_is_a_race_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker took the lease and removed half-written files before this one could link its claim."""
    real = os.link

    def clear_first(source: Path, target: Path) -> None:
        remove_partials(tmp_path / "shard.tar")
        real(source, target)

    monkeypatch.setattr(os, "link", clear_first)
    assert Leases(tmp_path, 60.0).take("shard") is None
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_finished_work_goes_when_its_owner_is_dead_and_stays_when_it_lives(tmp_path: Path) -> None:
    holder = hold_in_another_process(tmp_path)
    [lease] = tmp_path.glob("*.lease")
    watcher = Leases(tmp_path, 60.0)
    watcher.clear(lease.stem)
    assert lease.exists()
    holder.kill()
    holder.wait()
    watcher.clear(lease.stem)
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_one_worker_at_a_time_holds_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first = Leases(tmp_path, 60.0).take("shard")
    assert first is not None
    with first:
        assert first.held() and Leases(tmp_path, 60.0).take("shard") is None
    assert Leases(tmp_path, 60.0).take("shard") is not None
