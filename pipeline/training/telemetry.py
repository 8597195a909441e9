"""What a run tells: metrics.jsonl, samples.jsonl, TensorBoard and how far it is, written by rank 0 alone."""

import json
import logging
import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pipeline.distributed import collectives, process_group
from pipeline.distributed.stopwatch import COMMUNICATION, STOPWATCH
from pipeline.files import replace_file
from pipeline.progress_line import ProgressLine
from pipeline.training.sample_texts import SHARE, SampleText, share_that_differs
from pipeline.training.tensorboard import Curves

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
        self.metrics_path, self.samples_path = run_folder / "metrics.jsonl", run_folder / "samples.jsonl"
        for path in (self.metrics_path, self.samples_path):
            _forget_steps_from(path, first_step)
        self.curves: Curves | None = Curves(run_folder, first_step)
        self.line = ProgressLine("training", steps, "steps", done=first_step)

    def advance(self, tokens: float) -> None:
        """One more step, in which all ranks scored so many tokens."""
        self.tokens += tokens
        if self.active:
            self.line.advance()

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
            self.line.note = f"loss {values.get('loss', math.nan):.3f}"

    def log_validation(
        self,
        step: int,
        values: dict[str, float],
        texts: Sequence[SampleText] = (),
        pictures: Sequence[Tensor] = (),
    ) -> None:
        """Record held-out losses, and the texts of held-out pictures; the pictures themselves the first time."""
        share = {SHARE: share_that_differs(texts)} if texts else {}
        self._write({"step": step, "split": "validation", **_with_perplexities(values), **share})
        if not (self.active and texts):
            return
        with self._unless_the_disk_is_full(step, self.samples_path.name):
            is_new = not self.samples_path.exists() or not self.samples_path.stat().st_size
            with self.samples_path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, **asdict(each)}) + "\n" for each in texts)
            if self.curves:
                self.curves.add_texts(step, texts)
                if is_new:
                    self.curves.add_pictures(pictures)

    def _write(self, line: dict[str, Any]) -> None:
        if not self.active:
            return
        prefix = f"{line['split']}/" if "split" in line else ""
        numbers = {name: value for name, value in line.items() if name not in ("step", "split")}
        with self._unless_the_disk_is_full(line["step"], self.metrics_path.name):
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.curves = self.curves or Curves(self.metrics_path.parent, line["step"])
            self.curves.add_numbers(line["step"], numbers, line.get("split", ""))
        if not self.line.in_terminal:
            shown = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"{prefix}step {line['step']} {shown}", flush=True)

    @contextmanager
    def _unless_the_disk_is_full(self, step: int, name: str) -> Iterator[None]:
        """The run matters more than its curves."""
        try:
            yield
        except OSError as error:
            log.warning("step %d could not be written to %s and TensorBoard (%s)", step, name, error)
            self.curves = None

    def __enter__(self) -> "Telemetry":
        if self.active:
            self.line.__enter__()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self.active:
            self.line.__exit__(None, None, None)
            with suppress(OSError):
                if self.curves:
                    self.curves.close()


def _forget_steps_from(path: Path, first_step: int) -> None:
    """Drop lines of steps that will be run again, and a line torn by a kill."""
    if path.exists():
        lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
        replace_file(path, "".join(line for line in lines if _is_of_step(line, first_step)))


def _is_of_step(line: str, last: int) -> bool:
    """Whether a line is whole, and of a step up to `last`."""
    try:
        entry = json.loads(line) if line.endswith("}\n") else {}
        return isinstance(step := entry.get("step"), int) and step <= last
    except (ValueError, RecursionError):
        return False


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
