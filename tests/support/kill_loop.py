"""python -m tests.support.kill_loop KILLS SEED RECIPE: train, SIGKILL at random moments, go on, and train to the end.

Imports once and forks, since a start takes ten times as long as what it is to be killed in. Prints a line of JSON: at
which steps it was killed, and whether a checkpoint was being written then.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def start(recipe: str) -> int:
    """A forked process that trains to the end and leaves with pipeline.train's exit code."""
    child = os.fork()
    if child:
        return child
    from pipeline import train

    sys.argv = ["pipeline.train", "--recipe", recipe]
    output = os.open("/dev/null", os.O_WRONLY)
    os.dup2(output, 1)
    os._exit(train.main())


def steps_done(run_folder: Path) -> int:
    path = run_folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def is_saving(run_folder: Path) -> bool:
    folders = list((run_folder / "checkpoints").glob("step_*"))
    return any(not (folder / "COMPLETE").exists() for folder in folders if folder.exists())


def main() -> int:
    import torch

    from pipeline.config import load_recipe
    from tests.support import preloaded  # noqa: F401 - for the forks

    torch.set_num_threads(1)
    kills, draw, recipe = int(sys.argv[1]), random.Random(int(sys.argv[2])), sys.argv[3]
    folder, deaths = load_recipe(Path(recipe)).run.output, []
    while len(deaths) < kills:
        child, before = start(recipe), steps_done(folder)
        in_save, more = draw.random() < 0.4, draw.randrange(1, 6)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:  # some steps on, then in a save or anywhere in the next step
            if steps_done(folder) >= before + more and (not in_save or is_saving(folder)):
                break
            if os.waitpid(child, os.WNOHANG)[0]:
                print(f"the run ended by itself after {len(deaths)} kills", file=sys.stderr)
                return 1
            time.sleep(0.002)
        time.sleep(draw.random() * (0.002 if in_save else 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        deaths.append((steps_done(folder), is_saving(folder)))
    _, status = os.waitpid(start(recipe), 0)
    print(json.dumps(deaths))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
