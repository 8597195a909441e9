"""Runs img2dataset in a process tree of its own: `python -m data_prep.fetch_worker SETTINGS.json` (from `fetching`).

img2dataset's own processes import this module again, under the name `__mp_main__`; each installs the guarded opener
before it fetches anything. The tree dies with the process that started it.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from data_prep.guarded_opener import FetchLimits, install

LIMITS_VARIABLE = "BLIP2_FETCH_LIMITS"
"""Environment variable with the fields of FetchLimits as JSON; img2dataset's processes inherit it."""
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal to get when the parent dies."""


def prepare_process() -> None:
    """Guard this process: its opener, its end with its parent, and no torch (webdataset would load it for nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.modules["torch"] = None  # type: ignore[assignment]
    install(FetchLimits(**json.loads(os.environ[LIMITS_VARIABLE])))


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    import img2dataset

    img2dataset.download(**settings)


if __name__ in ("__main__", "__mp_main__"):
    prepare_process()
    if __name__ == "__main__":
        main()
