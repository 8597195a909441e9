"""python -m tests.support.eval_kill_loop KILLS SEED LOGS FLAGS...: eval.run, SIGKILL at random moments, go on, end.

Imports once and forks. Each start draws its number of ranks (1 to 3), real ones of a gloo group; LOGS is the folder of
the rank files. Half of the kills leave a half-written line. Prints a line of JSON: how many lines were whole at each.
"""

import gc
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.support.gloo_ranks import free_port

DEADLINE_S = 120
MOST_LINES_A_START = 10  # however fast the machine, some of the set is left for the last start
PRELOADED = [  # what a start would spend its time on
    "torch.distributed",
    "torchvision.transforms.v2",
    "timm",
    "transformers.models.opt.modeling_opt",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation",
    "pipeline.weights.any_format",
    "pipeline.models.inference",
    "eval.tasks.generation",
]


def start(ranks: int, flags: list[str]) -> list[int]:
    """Forked ranks of eval.run, which leave with its exit code."""
    port, children = str(free_port()), []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            os.environ.update(zip(names, (str(rank), str(rank), str(ranks), "127.0.0.1", port), strict=True))
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
            from eval import run

            os._exit(run.main(flags))
        children.append(child)
    return children


def lines_in(logs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in logs.glob("predictions.rank*.jsonl"))


def kill_all(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def wait_for_lines(logs: Path, lines: int, timeout_s: float, children: list[int]) -> None:
    """Until there are `lines` or the time is over. Raises SystemExit when a rank has left by itself."""
    deadline = time.monotonic() + timeout_s
    while lines_in(logs) < lines and time.monotonic() < deadline:
        for child in children:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                kill_all([each for each in children if each != child])
                sys.exit(
                    f"a rank left by itself, exit code {os.waitstatus_to_exitcode(status)}, {lines_in(logs)} lines"
                )
        time.sleep(0.001)


def main() -> int:
    for name in PRELOADED:
        importlib.import_module(name)
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("opt")  # compiles a thousand patterns, which the process keeps
    gc.freeze()  # what was imported is never garbage, and a fork that looks at it copies its pages
    kills, draw, logs, flags = int(sys.argv[1]), random.Random(int(sys.argv[2])), Path(sys.argv[3]), sys.argv[4:]
    deaths: list[int] = []
    while len(deaths) < kills:
        before, more = lines_in(logs), draw.randrange(0, 6)
        children = start(draw.choice((1, 2, 3)), flags)
        wait_for_lines(logs, before + more, DEADLINE_S, children)
        # Then anywhere in the next sample, or before the first.
        wait_for_lines(logs, before + MOST_LINES_A_START, draw.random() * (0.05 if more else 0.5), children)
        kill_all(children)
        deaths.append(lines_in(logs))
        if draw.random() < 0.5 and (files := sorted(logs.glob("predictions.rank*.jsonl"))):
            with draw.choice(files).open("ab") as file:
                file.write(b'{"id": 1003, "text": "half a li'[: draw.randrange(1, 30)])
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(draw.choice((1, 2, 3)), flags)]
    print(json.dumps(deaths))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
