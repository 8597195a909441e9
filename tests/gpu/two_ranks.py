"""Part 8: two gloo ranks on one GPU: gathers, the exchange and stage 1's losses are those of one rank.

NCCL refuses two ranks on a GPU. Nothing here shows NCCL between GPUs, or a network.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.training.task import StepPlace
from tests.gpu.checks import Checks

RANKS, PAIRS, ROWS, TURNS = 2, 6, 5, 20
ERROR = 1e-4
RANK_S = 120


def run(checks: Checks) -> None:
    from tests.support.gloo_ranks import free_port

    port, processes = free_port(), []
    for rank in range(RANKS):
        places = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in places.items()}
        command = [sys.executable, "-m", "tests.gpu.two_ranks", checks.device]
        root = Path(__file__).parents[2]
        processes.append(subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True))
    try:
        answers = [process.communicate(timeout=RANK_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    checks.report("exit codes", str(codes), "== [0, 0]", codes == [0] * RANKS)
    found = [json.loads(answer.splitlines()[-1]) for answer in answers]
    for name in ("gathered rows that are right", "exchanged rows that are right"):
        right = sum(each[name] for each in found)
        checks.report(name, right, f"== {RANKS * TURNS}", right == RANKS * TURNS)
    one = losses_of(checks.device, None)
    for name in ("itc_loss", "itm_loss", "itg_loss"):
        mean = sum(each["losses"][name] for each in found) / RANKS
        checks.at_most(f"{name} of two ranks beside one, relative", abs(mean - one[name]) / abs(one[name]), ERROR)


def rows_of(rank: int, turn: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    return torch.randn(PAIRS, ROWS, 7, generator=generator).to(device)


def collectives_right(device: str) -> dict[str, int]:
    """How often a gather and an exchange gave what plain indexing gives."""
    import torch.distributed as dist

    from pipeline.distributed import collectives

    rank, gathered_right, exchanged_right = dist.get_rank(), 0, 0
    for turn in range(TURNS):
        local = rows_of(rank, turn, device)
        joined = torch.cat([rows_of(each, turn, device) for each in range(RANKS)])
        gathered_right += int(torch.equal(collectives.gather_rows(local), joined))
        generator = torch.Generator().manual_seed(turn + 7 * rank)
        wanted = torch.randint(0, RANKS * PAIRS, (PAIRS,), generator=generator).to(device)
        exchange = collectives.start_exchange(wanted, torch.tensor(turn, device=device))
        same = torch.equal(exchange.rows(local), joined[wanted]) and exchange.number == turn
        exchanged_right += int(same)
    return {"gathered rows that are right": gathered_right, "exchanged rows that are right": exchanged_right}


def losses_of(device: str, rank: int | None) -> dict[str, float]:
    """Stage 1's losses of this rank's part of a batch; without a rank, those of the whole batch on one."""
    from pipeline.config import Objectives
    from pipeline.training.stage1_task import Stage1Task
    from tests.support.random_bridges import DECODE, random_batch, random_stage1

    vision: Any = nn.Identity()  # a batch's "pixels" are frozen features
    task = Stage1Task(random_stage1(), vision, Objectives(), DECODE, "fp32").eval().to(device)
    whole = random_batch([9, 4, 6, 8, 5, 7, 9, 3, 6, 5, 8, 4], seed=3)
    tokens = task.num_scored_tokens(whole)
    pairs = len(whole.image_ids_B)
    rows, ranks = (range(pairs), 1) if rank is None else (range(rank * PAIRS, (rank + 1) * PAIRS), RANKS)
    own = replace(
        whole,
        pixels_B3SS=whole.pixels_B3SS[list(rows)],
        image_ids_B=whole.image_ids_B[list(rows)],
        context=whole.context.rows(list(rows), 0),
        target=whole.target.rows(list(rows), 9),
    ).to(device)
    with torch.no_grad():
        losses = task(own, StepPlace(rank or 0, ranks / tokens, 9, 11, ranks))
    return {name: float(value) for name, value in losses.items()}


def rank_main(device: str) -> int:
    import torch.distributed as dist

    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        torch.cuda.set_device(0)
    dist.init_process_group("gloo")
    answer: dict[str, Any] = collectives_right(device)
    answer["losses"] = losses_of(device, dist.get_rank())
    print(json.dumps(answer), flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(rank_main(sys.argv[1]))
