"""Starts `python -m MODULE` as a fork of this process, which has imported the large libraries already.

Importing torch, timm and transformers takes 7 s of a core, and two dozen commands of the demo need them. A fork runs
the module as `python -m` does: as `__main__`, with its own arguments, environment, output and exit code. DeepSpeed's
launcher is its own code too, in forks: the command `deepspeed`, the launcher of a node that it starts, and the ranks.
"""

import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from data_prep.shards.processes import end_with_parent

MODULES = ("data_prep.capfilt", "data_prep.miniature.towers", "eval.run")
"""The commands of the demo that need these libraries, and no launcher or process of their own."""
LAUNCHER = "deepspeed"
LAUNCHERS = ("deepspeed.launcher.runner", "deepspeed.launcher.launch")
OF_TRAINING = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "omegaconf",
    "torch.utils.tensorboard",
    "torchvision.transforms.v2",
)
"""What ranks import beside the rest."""
PYTHON = (sys.executable, "-u", "-m")
_POPEN = subprocess.Popen


def can_fork(command: Sequence[str]) -> bool:
    """Whether a fork can run the command. A launcher of ranks on GPUs cannot: CUDA does not live through a fork."""
    if Path(command[0]).name == LAUNCHER:
        return not list(Path("/dev").glob("nvidia[0-9]*"))
    return tuple(command[:2]) == (sys.executable, "-m") and command[2] in MODULES


@cache
def import_libraries() -> None:
    """Import what the commands import. Nothing is computed here: a fork must not inherit threads or random states.

    The names are not used here (F401): a fork finds the modules loaded.
    """
    import pandas  # noqa: F401 - by pyarrow
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
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("opt")  # compiles a thousand patterns, which the process keeps
    gc.freeze()  # what was imported is never garbage, and a fork that looks at it copies its pages


@cache
def import_training() -> None:
    """The same of what a launcher and its ranks import."""
    import_libraries()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for GPUs, and warns that it found none
    for name in OF_TRAINING:
        importlib.import_module(name)
    gc.freeze()


class Fork:
    """A forked command, with the part of subprocess.Popen that the demo uses. The kernel kills it with its parent."""

    def __init__(self, command: Sequence[str], log: Path | None, environment: Mapping[str, str]) -> None:
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


def _start_as_fork(command: Sequence[str], *arguments: Any, **options: Any) -> Any:
    """Popen within a launcher: `python -u -m MODULE` becomes a fork, which writes where the launcher does."""
    if tuple(command[:3]) == PYTHON and not arguments and options.keys() <= {"env"}:
        return Fork((sys.executable, *command[2:]), None, options.get("env") or {})
    return _POPEN(command, *arguments, **options)


def _become(command: Sequence[str], log: Path | None, environment: Mapping[str, str]) -> NoReturn:
    """Run `python -m MODULE ARGUMENTS`, or `deepspeed`, in this process, which ends with its exit code."""
    code: object = 1
    try:
        end_with_parent()  # a fork has its parent's environment in /proc, so it could not be found by a mark
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if log:
            _redirect(log)
        os.environ.update(environment)
        module, *arguments = (LAUNCHERS[0], *command[1:]) if Path(command[0]).name == LAUNCHER else command[2:]
        subprocess.Popen = _start_as_fork if module in LAUNCHERS else _POPEN  # type: ignore[assignment, misc]
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
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - for the rest of the process
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
