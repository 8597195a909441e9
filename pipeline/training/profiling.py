"""The profile of some steps, and on GPUs the memory of a run: files in RUN/profile/, on every rank.

The trace is for https://ui.perfetto.dev, the memory for https://pytorch.org/memory_viz. Both pages work offline.
"""

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pipeline.distributed import process_group

log = logging.getLogger(__name__)
SKIPPED_STEPS = 4  # of a start, which also load, compile and fill caches; the fifth warms the profiler up
MEMORY_EVENTS = 200_000  # the last ones are kept, 100 bytes each or so


class Profile:
    """Profiles `num_steps` steps of this start, after its first five; 0: nothing is recorded, at no cost.

    The memory snapshot is written with the trace, and again when the GPU has no memory left.
    """

    def __init__(self, run_folder: Path, num_steps: int, device: str) -> None:
        self.folder, self.on_gpu = run_folder / "profile", device.startswith("cuda")
        self.profiler: Any = None
        if not num_steps:
            return
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.on_gpu else []
        plan = torch.profiler.schedule(wait=SKIPPED_STEPS, warmup=1, active=num_steps, repeat=1)
        self.profiler = torch.profiler.profile(activities=kinds, schedule=plan, on_trace_ready=self._write)

    def step(self) -> None:
        """A step has ended."""
        if self.profiler is not None:
            self.profiler.step()

    def _write(self, profiler: Any) -> None:
        path = self._path("trace.json.gz")
        profiler.export_chrome_trace(str(path))
        self._write_memory()
        log.info("profile: %s", path)

    def _write_memory(self) -> None:
        if self.on_gpu:
            torch.cuda.memory._dump_snapshot(  # type: ignore[no-untyped-call]
                str(self._path("memory.pickle"))
            )

    def _path(self, name: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"rank{process_group.rank()}.{name}"

    def __enter__(self) -> "Profile":
        if self.profiler is not None:
            if self.on_gpu:
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
            self.profiler.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self.profiler is None:
            return
        if isinstance(error, torch.OutOfMemoryError):
            self._write_memory()
            return  # the profiler's end allocates
        self.profiler.stop()
