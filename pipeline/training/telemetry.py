"""The metrics of a run: metrics.jsonl, TensorBoard and a progress bar, written by rank 0 alone."""

import json
import logging
import math
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pipeline.distributed import collectives, process_group
from pipeline.distributed.stopwatch import COMMUNICATION, STOPWATCH
from pipeline.files import replace_file

log = logging.getLogger(__name__)
SHARES = ("data", COMMUNICATION, "checkpoint")  # shares of the time, spent waiting for them


class Telemetry:
    """One line an interval; rank 0 writes it."""

    def __init__(
        self, run_folder: Path, first_step: int, steps: int, utilisation_of_one_sample_a_second: float | None = None
    ) -> None:
        self.utilisation_of_one_sample_a_second = utilisation_of_one_sample_a_second
        self.active = process_group.rank() == 0
        self.last_time, self.last_step, self.tokens = time.monotonic(), first_step, 0.0
        STOPWATCH.take()  # what came before the first step
        if not self.active:
            return
        from tqdm import tqdm

        self.metrics_path = run_folder / "metrics.jsonl"
        self._forget_steps_from(first_step)
        self.tensorboard: Any = _tensorboard(run_folder, first_step)
        self.progress = tqdm(total=steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())

    def _forget_steps_from(self, first_step: int) -> None:
        """Drop lines of steps that will be run again, and a line torn by a kill."""
        if not self.metrics_path.exists():
            return
        lines = self.metrics_path.read_text("utf-8", "replace").splitlines(keepends=True)
        replace_file(self.metrics_path, "".join(line for line in lines if _is_of_step(line, first_step)))

    def advance(self, tokens: float) -> None:
        """One more step, in which all ranks scored so many tokens."""
        self.tokens += tokens
        if self.active:
            self.progress.update()

    def log(self, step: int, samples: int, values: dict[str, float], global_batch_size: int) -> None:
        """Record the values of the interval that ends with `step`, speed, memory and where time went. Collective."""
        now, memory_mib = time.monotonic(), max(row[0] for row in collectives.gather_integers([_peak_memory_mib()]))
        seconds = now - self.last_time
        spent = STOPWATCH.take()
        shares = torch.tensor([spent.get(kind, 0.0) / seconds for kind in SHARES], device=process_group.device_name())
        shares_of_all = collectives.mean_over_ranks(shares).tolist()
        speed = {
            "samples_per_s": (step - self.last_step) * global_batch_size / seconds,
            "tokens_per_s": self.tokens / seconds,
            "memory_mib": float(memory_mib),
            **{f"{kind}_share": share for kind, share in zip(SHARES, shares_of_all, strict=True)},
        }
        if self.utilisation_of_one_sample_a_second:
            speed["model_flop_utilisation"] = speed["samples_per_s"] * self.utilisation_of_one_sample_a_second
        self.last_time, self.last_step, self.tokens = now, step, 0.0
        self._write({"step": step, "samples": samples, **values, **speed})
        if self.active:
            self.progress.set_postfix(loss=f"{values.get('loss', math.nan):.3f}")

    def log_validation(self, step: int, values: dict[str, float]) -> None:
        """Record held-out losses."""
        self._write({"step": step, "split": "validation", **_with_perplexities(values)})

    def _write(self, line: dict[str, Any]) -> None:
        if not self.active:
            return
        prefix = f"{line['split']}/" if "split" in line else ""
        numbers = {name: value for name, value in line.items() if name not in ("step", "split")}
        try:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.tensorboard = self.tensorboard or _tensorboard(self.metrics_path.parent, line["step"])
            for name, value in numbers.items():
                self.tensorboard.add_scalar(f"{prefix}{name}", value, line["step"])
        except OSError as error:  # a full disk: the run matters more than its curves
            log.warning("step %d could not be written to metrics.jsonl and TensorBoard (%s)", line["step"], error)
            self.tensorboard = None
        if self.progress.disable:
            shown = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"{prefix}step {line['step']} {shown}", flush=True)

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self.active:
            self.progress.close()
            with suppress(OSError):
                if self.tensorboard:
                    self.tensorboard.close()


def _is_of_step(line: str, last: int) -> bool:
    """Whether a line of metrics.jsonl is whole, and of a step up to `last`."""
    try:
        entry = json.loads(line) if line.endswith("}\n") else {}
        return isinstance(step := entry.get("step"), int) and step <= last
    except (ValueError, RecursionError):
        return False


def _tensorboard(run_folder: Path, first_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step)


def interval_means(interval: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over the interval's steps and over ranks (of corrupt samples, the sum). One host synchronisation."""
    if not interval:
        return {}
    names = list(interval[0])
    stacked = torch.stack([torch.stack([values[name].float() for name in names]) for values in interval]).mean(dim=0)
    means = dict(zip(names, collectives.mean_over_ranks(stacked).tolist(), strict=True))
    means["corrupt_samples"] *= len(interval) * process_group.world_size()
    return _with_perplexities(means)


def _with_perplexities(means: dict[str, float]) -> dict[str, float]:
    """`NAME_nll`, a mean negative log-likelihood a token, as `NAME_perplexity`."""
    return {
        name.replace("_nll", "_perplexity"): math.exp(min(value, MAX_EXPONENT)) if name.endswith("_nll") else value
        for name, value in means.items()
    }


MAX_EXPONENT = 50.0  # a fresh model's loss is near 10


def _peak_memory_mib() -> int:
    """Of the GPU since the last call, else of this process since its start."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
