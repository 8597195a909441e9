"""Compiles the blocks at real size, while others run: later parts find the compiled kernels on the disk.

What is checked is that torch.compile takes every block, and that the steps after it make no more graphs.
"""

from tests.gpu.checks import Checks
from tests.gpu.real_sizes import compile_all, compiled_graphs
from tests.gpu.real_towers import LONGEST, real_batch, real_recipe, real_task
from tests.gpu.stepping import Steps


def stage1(checks: Checks) -> None:
    compiled(checks, "stage1_vitg")


def flant5xxl(checks: Checks) -> None:
    compiled(checks, "stage2_vitg_flant5xxl")


def compiled(checks: Checks, name: str) -> None:
    from torch._dynamo.utils import counters

    recipe = real_recipe(name, checks.output, checks.tiny)
    steps = Steps(real_task(recipe, checks.device), recipe, LONGEST)
    batches = [real_batch(recipe, kind, seed) for seed in range(2) for kind in ("longest", "coco")]
    compile_all(checks, name, steps, batches)
    checks.at_most(f"{name}: breaks in graphs", sum(counters["graph_break"].values()), 0)
    before = compiled_graphs()
    steps.feed_again_and_again([real_batch(recipe, "coco", seed) for seed in range(2, 5)])
    for _ in range(1 if checks.tiny else 3):
        steps.step()
    checks.at_most(f"{name}: graphs made for other lengths", compiled_graphs() - before, 0 if checks.is_real else 99)
