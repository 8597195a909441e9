"""Curves of a training run, read from its metrics.jsonl: losses, accuracies, learning rate, speed and others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.sets.official_files import field_of
from pipeline.files import read_whole
from pipeline.pages.charts import LineChart, Points, line_chart

TITLES = {  # of numbers whose name does not read well
    "samples_per_s": "Samples per second",
    "tokens_per_s": "Tokens per second",
    "memory_mib": "Memory, MiB",
    "itg_perplexity": "ITG perplexity",
}
NOT_DRAWN = ("step", "samples", "split", "epoch")
LARGEST = 1e300  # of a number that is drawn; JSON has larger ones


def training_charts(run: Path) -> list[LineChart]:
    """The losses in one chart, the accuracies in one, and one chart for each other number."""
    return _charts(read_metrics(run / "metrics.jsonl"))


def read_metrics(path: Path) -> dict[str, Points]:
    """Each number by step. A number from a line with a split is named `name (split)`.

    Left out are: a torn line, a number that is always 0, and a part of the loss that equals the whole loss.
    """
    series: dict[str, Points] = {}
    try:
        text = read_whole(path).decode(errors="replace")
    except ValueError as error:
        raise ValueError(f"{path}: is not a file of losses ({error}); name a run folder of pipeline.train") from error
    for line in text.splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if abs(field_of(path, entry, "step", (int,))) > LARGEST:
            continue
        suffix = f" ({entry['split']})" if "split" in entry else ""
        for name, value in entry.items():
            if name not in NOT_DRAWN and isinstance(value, int | float) and abs(value) < LARGEST:
                series.setdefault(f"{name}{suffix}", []).append((float(entry["step"]), float(value)))
    return {
        name: points
        for name, points in series.items()
        if any(value for _, value in points) and (name == "loss" or points != series.get("loss"))
    }


def _charts(series: Mapping[str, Points]) -> list[LineChart]:
    losses, accuracies, others = dict[str, Points](), dict[str, Points](), list[LineChart]()
    for name, points in series.items():
        metric = name.split(" (")[0]
        if metric.endswith("loss"):
            losses[name] = points
        elif metric.endswith("accuracy"):
            accuracies[name] = points
        else:
            others.append(line_chart(TITLES.get(name, name.replace("_", " ").capitalize()), {name: points}))
    grouped = (("Losses", losses), ("Accuracies", accuracies))
    return [line_chart(title, group) for title, group in grouped if group] + others
