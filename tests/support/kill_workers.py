"""python -m tests.support.kill_workers KILLS SEED FOLDER MODULE ARGUMENT...: workers that race and are killed.

Three workers at a time run a command (MODULE's main) on one folder and get SIGKILL, each at a random moment of its own:
any moment of the run, or just after something appears in the folder. After three rounds one worker of each number runs
to its end, and another folder is begun, until there were KILLS kills. In ARGUMENTs %d stands for the folder of the turn
(FOLDER/0, FOLDER/1, ...), %w for the worker's number. Imports once and forks. Prints JSON: what stood at each kill.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

WORKERS, ROUNDS = 3, 3


def start(module: str, arguments: list[str]) -> int:
    """A forked process that runs the command to its end and leaves with its code."""
    child = os.fork()
    if child:
        return child
    output = os.open("/dev/null", os.O_WRONLY)
    os.dup2(output, 1)
    os._exit(import_module(module).main(arguments))


def import_all() -> None:
    """What the commands import while they run, so that a fork has it at once."""
    import pandas  # noqa: F401 - by pyarrow
    import pyarrow.parquet
    import torch
    from PIL import JpegImagePlugin, PngImagePlugin  # noqa: F401
    from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPModel, CLIPProcessor  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    models = ("captioned_shard", "candidates", "nucleus", "blip_decoder")
    for module in (*(f"captioning.{name}" for name in models), "raw.task", "capfilt", "download"):
        import_module(f"data_prep.{module}")
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    get_checkpoint_conversion_mapping("opt")  # compiles a thousand patterns, which the process keeps
    gc.freeze()  # what was imported is never garbage, and a fork that looks at it copies its pages


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def has_ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] != 0


def kill_each(children: list[int], folder: Path, draw: random.Random, typical_s: float) -> list[list[str]]:
    """Kill every child at its moment; returns what stood in the folder at each kill of one that had not ended."""
    began, seen, alive, states = time.monotonic(), entries(folder), set(children), []
    moments = {child: draw.random() * typical_s for child in children}
    on_change = {child for child in children if draw.random() < 0.5}
    while alive:
        now, found = time.monotonic() - began, entries(folder)
        for child in sorted(alive):
            changed = child in on_change and bool(found - seen)
            if changed:
                time.sleep(draw.random() * 0.004)
            if changed or now >= (2 * typical_s if child in on_change else moments[child]):
                alive.remove(child)
                if has_ended(child):
                    continue
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                states.append(sorted(entries(folder)))
                seen = entries(folder)
        time.sleep(0.001)
    return states


def main() -> int:
    import_all()
    kills, draw, folder, module = int(sys.argv[1]), random.Random(int(sys.argv[2])), Path(sys.argv[3]), sys.argv[4]

    def command(turn: int) -> Callable[[int], list[str]]:
        place = str(folder / str(turn))
        return lambda worker: [each.replace("%d", place).replace("%w", str(worker)) for each in sys.argv[5:]]

    states: list[list[str]] = []
    typical_s, turn = 0.0, 0
    while turn == 0 or len(states) < kills:
        arguments, began = command(turn), time.monotonic()
        if turn:  # turn 0 is the undisturbed run
            for _ in range(ROUNDS):
                children = [start(module, arguments(worker)) for worker in range(WORKERS)]
                states += kill_each(children, folder / str(turn), draw, typical_s)
        children = [start(module, arguments(worker)) for worker in range(WORKERS)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            print(f"turn {turn}: workers ended with {codes}", file=sys.stderr)
            return 1
        typical_s, turn = typical_s or time.monotonic() - began, turn + 1
    print(json.dumps({"states": states, "turns": turn, "typical_s": round(typical_s, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
