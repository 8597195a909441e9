"""Bars, histograms and line charts: where everything stands. Each chart names the template that draws it.

In a template: `{% include chart.template %}`, where `chart` is one of these.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.pages.axis import Frame, nice_ticks, shown_number

MAX_POINTS = 400
"""Points of a line; a longer line is thinned evenly."""

Points = list[tuple[float, float]]
Intervals = list[tuple[float, float, float]]
"""(step, low, high)."""


@dataclass(frozen=True)
class Bar:
    """One row: `length_percent` is relative to the longest bar, `share_percent` to the sum of all."""

    name: str
    count: int
    length_percent: float
    share_percent: float


@dataclass(frozen=True)
class Bars:
    """A horizontal bar per name."""

    template: ClassVar[str] = "pages/bars.html"
    title: str
    rows: list[Bar]


@dataclass(frozen=True)
class Histogram:
    """One histogram per series, overlaid. Of each bin: its height (1 is the highest), and its hint for the mouse.

    `labels` stand at the left, in the middle and at the right.
    """

    template: ClassVar[str] = "pages/histogram.html"
    frame: ClassVar[Frame] = Frame(width=360, height=150, left=4, right=4, top=8, bottom=22)
    title: str
    series: dict[str, list[tuple[float, str]]]
    labels: tuple[str, str, str]
    median: str
    num_values: int


@dataclass(frozen=True)
class Line:
    """One line: its points in the picture, its last value, and vertical bars (x, y of low, y of high)."""

    name: str
    last: str
    points: Points
    intervals: Intervals


@dataclass(frozen=True)
class LineChart:
    """Lines over steps. `ticks` are (y, number) of the grid; `first` and `last` are the ends of the step axis."""

    template: ClassVar[str] = "pages/line_chart.html"
    frame: ClassVar[Frame] = Frame(width=420, height=220, left=52, right=12, top=10, bottom=26)
    num_colours: ClassVar[int] = 6  # classes c0 to c5 of page.css
    title: str
    ticks: list[tuple[float, str]]
    first: tuple[float, str]
    last: tuple[float, str]
    lines: list[Line]


Chart = Bars | Histogram | LineChart


def bars(title: str, counts: Mapping[str, int], *, most: int = 12) -> Bars | None:
    """Bars, the longest first. What comes after `most` names is summed up in one row. None without any name."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    shown, rest = ordered[:most], ordered[most:]
    if rest:
        shown.append((f"{len(rest)} others", sum(number for _, number in rest)))
    if not shown:
        return None
    total, peak = max(sum(counts.values()), 1), max(1, *(number for _, number in shown))
    return Bars(title, [Bar(name, number, 100 * number / peak, 100 * number / total) for name, number in shown])


def histogram(title: str, series: Mapping[str, Sequence[float]], *, bins: int = 24, unit: str = "") -> Histogram | None:
    """Histograms on common bins from the 0.5th to the 99.5th percentile. None without any value.

    Values beyond those percentiles are counted in the outermost bins. Each series is drawn as shares of its own sum.
    """
    arrays = {name: np.asarray(each, dtype=np.float64) for name, each in series.items()}
    values = np.concatenate([*arrays.values(), np.empty(0)])
    if values.size == 0:
        return None
    low, high = (float(edge) for edge in np.percentile(values, [0.5, 99.5]))
    if np.all(values == np.round(values)) and high - low < 2 * bins:  # whole numbers: a bin each
        low, high = math.floor(low), math.ceil(high)
        edges = np.arange(low - 0.5, high + 1.0)
    else:
        high = high if high > low else low + 1.0
        edges = np.linspace(low, high, bins + 1)
    counts = {name: np.histogram(np.clip(each, edges[0], edges[-1]), edges)[0] for name, each in arrays.items()}
    peak = max(each.max() / max(each.sum(), 1) for each in counts.values())
    left, middle, right = (f"{shown_number(value)}{unit}" for value in (low, (low + high) / 2, high))
    return Histogram(
        title,
        {name: _bins(name, each, edges, peak) for name, each in counts.items()},
        (left, middle, right),
        f"{shown_number(float(np.median(values)))}{unit}",
        values.size,
    )


def _bins(name: str, counts: NDArray[np.int64], edges: NDArray[np.float64], peak: float) -> list[tuple[float, str]]:
    heights = (counts / max(int(counts.sum()), 1) / peak).tolist()
    names = [shown_number(edge) for edge in edges.tolist()]
    places = zip(heights, counts.tolist(), names[:-1], names[1:], strict=True)
    return [(height, f"{name}: {low} to {high}: {count:,}") for height, count, low, high in places]


def line_chart(title: str, series: Mapping[str, Points], intervals: Mapping[str, Intervals] | None = None) -> LineChart:
    """Lines over steps, one per series. Every series has at least one point (step, value), and may have intervals."""
    intervals = intervals or {}
    every = [point for points in series.values() for point in points]
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    heights = [y for _, y in every] + [end for bars in intervals.values() for _, *ends in bars for end in ends]
    low, high = min(0.0, *heights), max(heights)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def across(x: float) -> float:
        return LineChart.frame.across((x - first) / (last - first) if last > first else 0.5)

    def up(y: float) -> float:
        return LineChart.frame.up((y - low) / (high - low) if high > low else 0.5)

    lines = {name: [(across(x), up(y)) for x, y in _thinned(points)] for name, points in series.items()}
    return LineChart(
        title,
        [(up(tick), shown_number(tick)) for tick in ticks],
        (across(first), f"{first:,.0f}"),
        (across(last), f"{last:,.0f}"),
        [
            Line(
                name,
                shown_number(series[name][-1][1]),
                points,
                [(across(x), up(bottom), up(top)) for x, bottom, top in intervals.get(name, [])],
            )
            for name, points in lines.items()
        ],
    )


def _thinned(points: Points) -> Points:
    stride = math.ceil(len(points) / MAX_POINTS)
    return points[::stride] if (len(points) - 1) % stride == 0 else [*points[::stride], points[-1]]
