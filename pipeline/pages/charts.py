"""Small charts as inline SVG and HTML: histograms and bars, without scripts or requests, every text escaped."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 360, 150
"""Size of a histogram in SVG units; the page scales it."""
LEFT, BOTTOM, TOP = 4, 22, 8


def histogram(title: str, series: Mapping[str, Sequence[float]], *, bins: int = 24, unit: str = "") -> str:
    """A figure with one histogram per series, overlaid, on common bins from the 0.5th to the 99.5th percentile.

    Values beyond those are counted in the outermost bins. Several series are drawn as shares, each of its own whole.
    "" when there is no value at all.
    """
    values = np.concatenate([np.asarray(each, dtype=np.float64) for each in series.values()])
    if values.size == 0:
        return ""
    low, high = (float(edge) for edge in np.percentile(values, [0.5, 99.5]))
    whole = bool(np.all(values == np.round(values))) and high - low < 2 * bins
    if whole:  # whole numbers: a bin each
        edges = np.arange(np.floor(low) - 0.5, np.ceil(high) + 1.0)
    else:
        edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    counts = {
        name: np.histogram(np.clip(np.asarray(each, dtype=np.float64), edges[0], edges[-1]), edges)[0]
        for name, each in series.items()
    }
    peak = max(each.max() / max(each.sum(), 1) for each in counts.values())
    shapes = "".join(_bars(name, each, edges, peak, number) for number, (name, each) in enumerate(counts.items()))
    ends = (edges[0] + 0.5, edges[-1] - 0.5) if whole else (edges[0], edges[-1])
    legend = "".join(
        f'<span class="key s{number}">{escape(name)}</span>' for number, name in enumerate(series) if len(series) > 1
    )
    axis = f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{shapes}{axis}{_labels(*ends, unit)}</svg>"
        f'<p class="note">median {_number(float(np.median(values)))}{escape(unit)}, {values.size:,} values</p></figure>'
    )


def bars(title: str, counts: Mapping[str, int], *, most: int = 12) -> str:
    """A figure with a horizontal bar per name, longest first; what comes after `most` is summed up in one line."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    if not ordered:
        return ""
    shown, rest = ordered[:most], ordered[most:]
    if rest:
        shown.append((f"{len(rest)} others", sum(number for _, number in rest)))
    total, peak = sum(counts.values()), max(number for _, number in shown)
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th>"
        f'<td class="track"><i style="width:{100 * number / max(peak, 1):.1f}%"></i></td>'
        f"<td>{number:,}</td><td>{100 * number / max(total, 1):.1f}%</td></tr>"
        for name, number in shown
    )
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption><table class="bars">{rows}</table></figure>'


def _bars(name: str, counts: NDArray[np.int64], edges: NDArray[np.float64], peak: float, number: int) -> str:
    room, step = HEIGHT - TOP - BOTTOM, (WIDTH - 2 * LEFT) / len(counts)
    shapes = []
    for position, count in enumerate(counts.tolist()):
        height = room * count / max(int(counts.sum()), 1) / peak
        tip = f"{name}: {_number(float(edges[position]))} to {_number(float(edges[position + 1]))}: {count:,}"
        shapes.append(
            f'<rect class="s{number}" x="{LEFT + position * step:.2f}" y="{HEIGHT - BOTTOM - height:.2f}" '
            f'width="{max(step - 1, 0.5):.2f}" height="{height:.2f}"><title>{escape(tip)}</title></rect>'
        )
    return "".join(shapes)


def _labels(low: float, high: float, unit: str) -> str:
    places = [(LEFT, low, "start"), (WIDTH / 2, (low + high) / 2, "middle"), (WIDTH - LEFT, high, "end")]
    return "".join(
        f'<text x="{place:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{_number(value)}{escape(unit)}</text>'
        for place, value, anchor in places
    )


def _number(value: float) -> str:
    """Three significant digits, without an exponent for everyday sizes."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
