"""Runs img2dataset's pyspark distributor behind the guard: every Spark worker process has its own filtering proxy.

The tasks may run on other machines, which cannot reach the proxy of the command. So the downloader that Spark sends to
them starts a proxy in each process, and img2dataset cannot bypass it. Spark's workers need this project's folder under
the same path, its packages, and the output folder.
"""

import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.web.guard_proxy import GuardLimits, GuardProxy
from data_prep.web.guarded_opener import FetchLimits, build_opener
from data_prep.web.img2dataset_imports import leave_out_unused

if "img2dataset" not in sys.modules:  # in a Spark worker, which imports this module to unpickle the downloader
    leave_out_unused()
from img2dataset.downloader import Downloader

BYPASSES = ("no_proxy", "all_proxy", "request_method")
"""Environment variables that could lead requests past the proxy."""


class GuardedDownloader(Downloader):  # type: ignore[misc]  # img2dataset has no types
    """img2dataset's downloader, which guards its process before it fetches anything."""

    def __init__(self, *arguments: Any, limits: dict[str, Any], guard: dict[str, Any], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.limits, self.guard = limits, guard

    def __call__(self, row: Any) -> Any:
        _guard_process(tuple(self.limits.items()), tuple(self.guard.items()))
        return super().__call__(row)


@cache
def _guard_process(limits: tuple[tuple[str, Any], ...], guard: tuple[tuple[str, Any], ...]) -> GuardProxy:
    for name in [name for name in os.environ if name.lower() in BYPASSES]:
        del os.environ[name]
    proxy = GuardProxy(GuardLimits(**dict(guard)))
    proxy.__enter__()  # until the process ends
    own = FetchLimits(**dict(limits) | {"proxy_url": proxy.url})
    urllib.request.install_opener(build_opener(own))
    return proxy


@contextmanager
def guarded_spark(master: str, limits: FetchLimits, guard: dict[str, Any]) -> Iterator[None]:
    """Start a Spark session, which img2dataset then uses, and replace its downloader by ours."""
    import img2dataset.main
    from pyspark.sql import SparkSession

    root = str(Path(__file__).resolve().parents[2])
    builder: Any = SparkSession.builder.master(master).appName("data_prep.download")
    for name, value in {
        "spark.executorEnv.PYTHONPATH": root,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()

    def guarded(*arguments: Any, **named: Any) -> GuardedDownloader:
        return GuardedDownloader(*arguments, limits=asdict(limits), guard=guard, **named)

    img2dataset.main.Downloader = guarded
    try:
        yield
    finally:
        session.stop()
