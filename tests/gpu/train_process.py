"""python -m tests.gpu.train_process DEVICE FAULT RECIPE: pipeline.train on one rank, with a planted fault or none.

FAULT: none, nan, overflow or raise, in one step. Prints `backend=`, `unchanged=` (the steps that left the weights as
they were) and `raised=` (when). On a CPU, DEVICE hides the GPUs.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

HUGE = 1e30


def main() -> int:
    device, fault, recipe = sys.argv[1:]
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from pipeline import train
    from pipeline.training import loop, step
    from pipeline.training.stage1_task import Stage1Task
    from pipeline.training.stage2_task import Stage2Task
    from tests.gpu.training import BAD_STEP

    train_step, unchanged, current = step.train_step, [], [0]

    def watched(engine: Any, batches: Any, places: Any, recipe: Any, progress: Any, ahead: Any) -> Any:
        current[0] = progress.step
        if progress.step == 0:
            print(f"backend={torch.distributed.get_backend()}", flush=True)
        if fault == "raise" and progress.step == BAD_STEP:
            print(f"raised={time.time()}", flush=True)
            raise RuntimeError("a planted fault")
        watch = fault == "nan"
        before = weights(engine) if watch else None
        values = train_step(engine, batches, places, recipe, progress, ahead)
        if before is not None and torch.equal(before, weights(engine)):
            unchanged.append(progress.step)
        return values

    def weights(engine: Any) -> Any:
        return torch.cat([each.detach().flatten() for each in engine.module.bridge.parameters()]).clone()

    def spoilt(forward: Callable[..., Any]) -> Callable[..., Any]:
        factor = {"nan": float("nan"), "overflow": HUGE}.get(fault, 1.0)

        def spoiling(*arguments: Any) -> Any:
            values = forward(*arguments)
            if current[0] == BAD_STEP and factor != 1.0:
                values["loss"] = values["loss"] * factor
            return values

        return spoiling

    with (
        mock.patch.object(loop, "train_step", watched),
        mock.patch.object(Stage1Task, "forward", spoilt(Stage1Task.forward)),
        mock.patch.object(Stage2Task, "forward", spoilt(Stage2Task.forward)),
        mock.patch.object(sys, "argv", ["pipeline.train", "--recipe", recipe]),
    ):
        code = train.main()
    print(f"unchanged={unchanged}")
    return code


if __name__ == "__main__":
    sys.exit(main())
