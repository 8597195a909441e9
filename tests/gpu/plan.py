"""The parts of `make gpu`, in the order of their start, and the seconds that each may take."""

from dataclasses import dataclass

BUDGET_S = 480.0


@dataclass(frozen=True)
class Part:
    """`together`: it measures no time, so it may run beside others. `function` of `module` takes a `Checks`.

    A function `prepare` of the module, if it has one, runs before: it takes a `Checks`, too, and no GPU.
    """

    name: str
    module: str
    limit_s: float
    together: bool = False
    function: str = "run"


PARTS = (
    Part("training", "tests.gpu.training", 140, together=True),
    Part("parity", "tests.gpu.parity", 110, together=True),
    Part("graphs-stage1", "tests.gpu.graphs", 150, together=True, function="stage1"),
    Part("graphs-flant5xxl", "tests.gpu.graphs", 150, together=True, function="flant5xxl"),
    Part("waits", "tests.gpu.syncs", 90, together=True),
    Part("two-ranks", "tests.gpu.two_ranks", 90, together=True),
    Part("ceilings", "tests.gpu.ceilings", 40),
    Part("stage1", "tests.gpu.real_sizes", 150, function="stage1"),
    Part("overlap", "tests.gpu.overlap", 40),
    Part("flant5xxl", "tests.gpu.real_sizes", 130, function="flant5xxl"),
    Part("loader", "tests.gpu.loading", 80),
    Part("capfilt", "tests.gpu.capfilt", 70),
    Part("rerank", "tests.gpu.reranking", 50),
    Part("opt", "tests.gpu.real_sizes", 90, function="opt"),
)
