"""Runs img2dataset in its own process tree: `python -m data_prep.web.fetch_worker SETTINGS.json` (see `fetching`).

img2dataset's own processes import this module again, under the name `__mp_main__`, and each installs the guarded opener
before it fetches anything. All these processes die with the process that started them.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Any

from data_prep.shards.processes import end_with_parent
from data_prep.web.img2dataset_imports import leave_out_unused
from data_prep.web.row_writer import RowWriter
from pipeline.web.guarded_connections import refuse_other_connections
from pipeline.web.guarded_opener import FetchLimits, build_opener

LIMITS_VARIABLE = "BLIP2_FETCH_LIMITS"
"""The environment variable with the fields of FetchLimits as JSON. img2dataset's processes inherit it."""

OPEN_FILES = 16_384
KILLED = 137
"""Exit code when one of its processes was killed; a shell would give 137 for SIGKILL, too."""
POLL_S = 0.2
GRACE_S = 10.0


def prepare_process() -> None:
    """Guard this process: set its opener, let it die with its parent, and skip imports that are not used (also of
    torch, which webdataset imports only if it is there)."""
    end_with_parent()
    leave_out_unused()
    _allow_many_files()
    limits = fetch_limits()
    urllib.request.install_opener(build_opener(limits))


def fetch_limits() -> FetchLimits:
    return FetchLimits(**json.loads(os.environ[LIMITS_VARIABLE]))


def _allow_many_files() -> None:
    """Raise the soft limit of open files, which is often 1,024: each thread has a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def end_with_killed_process() -> None:
    """End this process soon after one of img2dataset's is killed, as when memory runs out: its pool would wait for the
    lost work for ever.

    Its pool ends them by SIGTERM when all is done, and that is no such kill. To be sure, this process has some time to
    end by itself.
    """

    def watch() -> None:
        seen: set[multiprocessing.process.BaseProcess] = set()
        while True:
            seen |= set(multiprocessing.active_children())
            if any(each.exitcode == -signal.SIGKILL for each in seen):
                break
            seen = {each for each in seen if each.exitcode is None}
            time.sleep(POLL_S)
        time.sleep(GRACE_S)
        os._exit(KILLED)

    threading.Thread(target=watch, name="killed processes", daemon=True).start()


def main() -> None:
    end_with_killed_process()
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    img2dataset: Any = import_module("img2dataset.main")  # the attribute `main` of its package is a function
    img2dataset.DummySampleWriter = RowWriter
    if settings["img2dataset"]["distributor"] == "pyspark":
        from data_prep.web.spark_tasks import guarded_spark

        with guarded_spark(settings["spark_master"], fetch_limits()):
            img2dataset.download(**settings["img2dataset"])
    else:
        img2dataset.download(**settings["img2dataset"])


if __name__ in ("__main__", "__mp_main__"):
    prepare_process()
    if __name__ == "__main__":
        main()
    else:
        refuse_other_connections(allow_loopback=fetch_limits().allow_loopback)
