"""Runs img2dataset's pyspark distributor behind the guard.

The tasks may run on other machines. So the downloader that Spark sends to them installs the guarded opener in each
process, and img2dataset cannot bypass it. Spark's workers need this project's folder under the same path, its packages,
and the output folder.
"""

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.web.img2dataset_imports import leave_out_unused
from pipeline.web.guarded_opener import FetchLimits, build_opener

if "img2dataset" not in sys.modules:  # in a Spark worker, which imports this module to unpickle the downloader
    leave_out_unused()
from img2dataset.downloader import Downloader


class GuardedDownloader(Downloader):  # type: ignore[misc]  # img2dataset has no types
    """img2dataset's downloader, which guards its process before it fetches anything."""

    def __init__(self, *arguments: Any, limits: FetchLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.limits = limits

    def __call__(self, row: Any) -> Any:
        _guard_process(self.limits)
        return super().__call__(row)


@cache
def _guard_process(limits: FetchLimits) -> None:
    urllib.request.install_opener(build_opener(limits))


@contextmanager
def guarded_spark(master: str, limits: FetchLimits) -> Iterator[None]:
    """Start a Spark session, which img2dataset then uses, and replace its downloader by ours."""
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
        return GuardedDownloader(*arguments, limits=limits, **named)

    sys.modules["img2dataset.main"].Downloader = guarded  # type: ignore[attr-defined]
    try:
        yield
    finally:
        session.stop()
