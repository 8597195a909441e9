"""Charts: what is computed, and what the templates draw of it."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from pipeline.pages.charts import MAX_POINTS, Chart, LineChart, bars, histogram, line_chart
from pipeline.pages.page import render

HOSTILE = '<script>alert("1")</script> & {{ 7 * 7 }} "onload="x'


def draw(chart: Chart | None) -> str:
    assert chart is not None
    return render(Path(__file__).parent, chart.template, chart=chart)


def test_histograms_count_every_value() -> None:
    rng = np.random.default_rng(0)
    series = {"one": rng.normal(size=500).tolist(), "two": [0.0] * 7}
    found = draw(histogram("scores", series))
    for name, values in series.items():
        tips = re.findall(rf"<title>{name}: .*?: ([\d,]+)</title>", found)
        assert sum(int(count.replace(",", "")) for count in tips) == len(values)
    assert histogram("nothing", {"none": []}) is None and histogram("nothing", {}) is None
    assert "5 px" in draw(histogram("one value", {"px": [5.0]}, unit=" px"))


def test_whole_numbers_have_a_bin_each() -> None:
    chart = histogram("words", {"words": [3.0, 3.0, 4.0, 6.0]})
    assert chart is not None
    assert [height for height, _ in chart.series["words"]] == [1, 0.5, 0, 0.5]
    assert chart.labels == ("3", "4.5", "6") and chart.median == "3.5"


def test_bars_sum_up_what_they_do_not_show() -> None:
    found = draw(bars("hosts", {f"host-{number}": number + 1 for number in range(20)}, most=3))
    rows = re.findall(r"<th>(.*?)</th>.*?<td>([\d,]+)</td>", found)
    assert rows == [("host-19", "20"), ("host-18", "19"), ("host-17", "18"), ("17 others", str(sum(range(1, 18))))]
    assert bars("nothing", {}) is None


def test_bars_of_zeros_have_no_length() -> None:
    chart = bars("dropped", {"a": 0, "b": 0})
    assert chart is not None and [(row.length_percent, row.share_percent) for row in chart.rows] == [(0, 0), (0, 0)]


def test_a_line_goes_through_its_values_from_the_first_step_to_the_last() -> None:
    chart = line_chart("Losses", {"loss": [(10.0, 4.0), (20.0, 2.0), (30.0, 0.0)], "one": [(20.0, 1.0)]})
    left, right, top, floor = 52, 420 - 12, 10, 220 - 26  # the margins of LineChart.frame
    assert chart.lines[0].points == [(left, top), ((left + right) / 2, (top + floor) / 2), (right, floor)]
    assert [text for _, text in chart.ticks] == ["0", "1", "2", "3", "4"]
    assert chart.first == (left, "10") and chart.last == (right, "30") and chart.lines[0].last == "0"
    found = draw(chart)
    assert found.count("<polyline") == 1 and found.count("<circle") == 1


def test_an_interval_is_a_bar_from_its_low_to_its_high_end_and_the_axis_holds_it() -> None:
    lines = {"mean": [(10.0, 2.0), (20.0, 2.0)], "alone": [(10.0, 1.0)]}
    chart = line_chart("Accuracy", lines, {"mean": [(20.0, -1.0, 4.0)]})
    _, right, top, floor = 52, 420 - 12, 10, 220 - 26
    assert [text for _, text in chart.ticks] == ["-2", "0", "2", "4"]
    assert chart.lines[0].intervals == [(right, pytest.approx(floor - (floor - top) / 6), top)]
    assert chart.lines[1].intervals == [] and draw(chart).count('class="interval c0"') == 1


def test_a_long_line_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(step), float(step % 7)) for step in range(10 * MAX_POINTS + 3)]
    [line] = line_chart("long", {"loss": points}).lines
    assert len(line.points) <= MAX_POINTS + 1
    assert line.points[0][0] == LineChart.frame.across(0) and line.points[-1][0] == LineChart.frame.across(1)


@pytest.mark.parametrize("kind", ["bars", "histogram", "line_chart"])
def test_names_are_text_in_every_chart(kind: str) -> None:
    charts: dict[str, Chart | None] = {
        "bars": bars(HOSTILE, {HOSTILE: 3}),
        "histogram": histogram(HOSTILE, {HOSTILE: [1.0, 2.0], "other": [3.0]}, unit=HOSTILE),
        "line_chart": line_chart(HOSTILE, {HOSTILE: [(1, 1), (2, 2)], f"{HOSTILE}2": [(1, 1)]}),
    }
    figure = ElementTree.fromstring(draw(charts[kind]))  # every tag is closed
    assert HOSTILE in "".join(figure.itertext())
    for element in figure.iter():
        assert element.tag != "script" and not any(name.startswith("on") for name in element.attrib)
