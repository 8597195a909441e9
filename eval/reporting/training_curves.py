"""Curves of training runs from metrics.jsonl, as inline SVG: losses, accuracies, learning rate, speed and the like."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eval.sets.official_files import field_of

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
COLOURS = 6  # classes s0..s5 of the style sheet
MAX_POINTS = 400  # of a line; more are thinned evenly
TITLES = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "samples_per_s": "Samples a second",
    "temperature": "Temperature",
}
NOT_DRAWN = ("step", "samples", "split", "epoch")

Points = list[tuple[float, float]]


def curves_section(runs: Sequence[Path]) -> str:
    """The charts of each run folder."""
    parts = [f"<h3>{escape(run.name)}</h3>{_charts(read_metrics(run / 'metrics.jsonl'))}" for run in runs]
    return f"<h2>Training</h2>{''.join(parts)}" if parts else ""


def read_metrics(path: Path) -> dict[str, Points]:
    """Each number by step; those of lines with a split are named `name (split)`. A torn line is left out,
    and so are numbers that are always 0, and a part of the loss that is all of it."""
    series: dict[str, Points] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        field_of(path, entry, "step", (int,))
        suffix = f" ({entry['split']})" if "split" in entry else ""
        for name, value in entry.items():
            if name not in NOT_DRAWN and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(f"{name}{suffix}", []).append((float(entry["step"]), float(value)))
    return {
        name: points
        for name, points in series.items()
        if any(value for _, value in points) and (name == "loss" or points != series.get("loss"))
    }


def _charts(series: Mapping[str, Points]) -> str:
    charts = []
    for title, wanted in (("Losses", "loss"), ("Accuracies", "accuracy")):
        group = {name: points for name, points in series.items() if name.split(" (")[0].endswith(wanted)}
        if group:
            charts.append(chart(title, group))
    drawn = ("loss", "accuracy")
    for name, points in series.items():
        if not name.split(" (")[0].endswith(drawn):
            charts.append(chart(TITLES.get(name, name.replace("_", " ").capitalize()), {name: points}))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else '<p class="note">No finished steps.</p>'


def chart(title: str, series: Mapping[str, Points]) -> str:
    """Lines over steps, as one figure."""
    every = [point for points in series.values() for point in points]
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(0.0, *(y for _, y in every)), max(y for _, y in every)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((y - low) / (high - low) if high > low else 0.5)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{shown_number(tick)}</text>'
        for tick in ticks
    )
    steps = "".join(
        f'<text x="{across(x):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{x:,.0f}</text>'
        for x, anchor in ((first, "start"), (last, "end"))
    )
    lines = "".join(
        _line(place % COLOURS, name, [(across(x), down(y)) for x, y in _thinned(points)], points[-1][1])
        for place, (name, points) in enumerate(series.items())
    )
    keys = "".join(
        f'<span class="key k{place % COLOURS}">{escape(name.replace("_", " "))} <b>{shown_number(y)}</b></span>'
        for place, (name, y) in enumerate((name, points[-1][1]) for name, points in series.items())
    )
    return (
        f'<figure class="panel chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)} by step">'
        f'{grid}{steps}<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">step</text>'
        f"{lines}</svg><div class='keys'>{keys}</div></figure>"
    )


def _line(colour: int, name: str, points: Points, final: float) -> str:
    label = f"<title>{escape(name)}: {shown_number(final)} at the end</title>"
    if len(points) == 1:
        return f'<circle class="c{colour}" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3">{label}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="c{colour}" points="{path}">{label}</polyline>'


def _thinned(points: Points) -> Points:
    stride = math.ceil(len(points) / MAX_POINTS)
    return points[::stride] if (len(points) - 1) % stride == 0 else [*points[::stride], points[-1]]


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that span low to high: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, last + 1)]


def shown_number(value: float) -> str:
    """Three significant figures, without a trail of zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace(".00e", "e")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
