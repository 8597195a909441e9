"""Says which steps of the demo may start now, and how long the rest will take."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

USUAL_S = {
    "world": 16, "download-laion400m": 14, "download-cc3m": 17, "towers-ranker": 125, "towers-captioner": 80,
    "towers-bert": 21, "towers-t5": 76, "towers-opt": 85, "capfilt-laion400m": 18, "capfilt-cc3m": 16,
    "train-stage1": 213, "train-stage2_t5": 51, "train-stage2_opt": 180, "train-stage2_t5_own": 7, "eval-retrieval": 15,
    "train-finetune_retrieval": 124, "train-finetune_caption": 45, "train-finetune_vqa": 272,
    "eval-finetune_retrieval": 21,
}  # fmt: skip
"""The seconds of the long steps on two idle cores, and of steps whose name goes on after a "-" (another seed, another
start). All others take about SHORT_S."""
SHORT_S = 8


@dataclass(frozen=True)
class Step:
    """One command as a user would type it. It is done when `output` exists.

    `needs` are the names of the steps whose files it reads; they stand before it in the list. `beside` is a command
    that runs as long as a step that names it. `folder` is moved aside when the step was started with another command,
    recipe or needs: its content would be refused or mixed.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] | None = None
    folder: Path | None = None


def usual_s(step: Step) -> float:
    kinds = [name for name in USUAL_S if f"{step.name}-".startswith(f"{name}-")]
    return USUAL_S[max(kinds, key=len)] if kinds else SHORT_S


def time_to_end(steps: Sequence[Step]) -> dict[str, float]:
    """Name -> the seconds that a step and the longest chain of steps after it take. The longest of all is the least
    that the demo can take."""
    left = {step.name: 0.0 for step in steps}
    for step in reversed(steps):
        left[step.name] += usual_s(step)
        for name in step.needs:
            left[name] = max(left[name], left[step.name])
    return left


def startable(waiting: Sequence[Step], running: Collection[Step], at_once: int) -> list[Step]:
    """The waiting steps that may start beside the running ones: the first whose needs are done."""
    unfinished = {step.name for step in (*waiting, *running)}
    ready = [step for step in waiting if not unfinished & set(step.needs)]
    return ready[: max(0, at_once - len(running))]


def seconds_left(
    waiting: Sequence[Step], running: Mapping[Step, float], at_once: int, expected_s: Callable[[Step], float]
) -> float:
    """How long until the last step ends. `running` has the seconds since each step started."""
    waiting, now = list(waiting), 0.0
    ends = {step: max(0.0, expected_s(step) - elapsed_s) for step, elapsed_s in running.items()}
    while waiting or ends:
        for step in startable(waiting, ends, at_once):
            waiting.remove(step)
            ends[step] = now + expected_s(step)
        now = min(ends.values())
        ends = {step: end for step, end in ends.items() if end > now}
    return now
