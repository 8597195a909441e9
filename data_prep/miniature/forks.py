"""Starts `python -m MODULE` as a fork of this process, which has imported the large libraries already.

Importing torch, timm and transformers takes 7 s of a core, and two dozen commands of the demo need them. A fork runs
the module as `python -m` does: as `__main__`, with its own arguments, environment, output and exit code.
"""

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

from data_prep.shards.processes import end_with_parent

MODULES = ("data_prep.capfilt", "data_prep.miniature.towers", "eval.run")
"""The commands of the demo that need these libraries, and no launcher or process of their own."""


@cache
def import_libraries() -> None:
    """Import what the commands import. Nothing is computed here: a fork must not inherit threads or random states.

    The names are not used here (F401): a fork finds the modules loaded.
    """
    import timm  # noqa: F401
    import torch  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        BertForMaskedLM,
        BlipForConditionalGeneration,
        BlipProcessor,
        CLIPModel,
        CLIPProcessor,
        OPTForCausalLM,
        T5ForConditionalGeneration,
    )


class Fork:
    """A forked command, with the part of subprocess.Popen that the demo uses. The kernel kills it with its parent."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, log, environment)

    def poll(self) -> int | None:
        return self._note(os.WNOHANG)

    def wait(self) -> int | None:
        return self._note(0)

    def _note(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # psutil has waited for it
                pid, status = self.pid, signal.SIGTERM
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _become(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> NoReturn:
    """Run `python -m MODULE ARGUMENTS` in this process, which ends with its exit code."""
    code: object = 1
    try:
        end_with_parent()  # a fork has its parent's environment in /proc, so it could not be found by a mark
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _redirect(log)
        os.environ.update(environment)
        _, _, module, *arguments = command
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        if not isinstance(code, int):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _redirect(log: Path) -> None:
    """Standard output and error go to the end of the log, line by line; there is no input."""
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
