"""What a run says of itself: metrics.jsonl, TensorBoard and a progress bar, from rank 0 alone."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from pipeline.distributed import process_group


class Telemetry:
    """Writes one line an interval. On other ranks than 0 it does nothing."""

    def __init__(self, run_folder: Path, first_step: int, steps: int) -> None:
        self.active = process_group.rank() == 0
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.metrics_path = run_folder / "metrics.jsonl"
        self._forget_steps_from(first_step)
        self.tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step)
        self.progress = tqdm(total=steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())
        self.last_time, self.last_step = time.monotonic(), first_step

    def _forget_steps_from(self, first_step: int) -> None:
        """Drop lines of steps that will be run again, and a line torn by a kill."""
        if not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= first_step]
        temporary = self.metrics_path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self.metrics_path)

    def advance(self) -> None:
        if self.active:
            self.progress.update()

    def log(self, step: int, samples: int, values: dict[str, float], global_batch_size: int) -> None:
        """Record the values of the interval that ends with `step`."""
        if not self.active:
            return
        now = time.monotonic()
        rate = (step - self.last_step) * global_batch_size / (now - self.last_time)
        self.last_time, self.last_step = now, step
        line = {"step": step, "samples": samples, **values, "samples_per_s": rate}
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if name != "step":
                self.tensorboard.add_scalar(name, value, step)
        self.progress.set_postfix(loss=f"{values.get('loss', float('nan')):.3f}")
        if self.progress.disable:
            shown = " ".join(f"{name} {value:.4g}" for name, value in line.items())
            print(shown, flush=True)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self.active:
            self.progress.close()
            self.tensorboard.close()
