"""Scores over the checkpoints of a run, read from FOLDER/step_N/NAME/metrics.json."""

from pathlib import Path

from eval.reporting.files import scores_over_steps
from eval.reporting.scores import METRIC_NAMES, is_important
from pipeline.pages.charts import LineChart, Points, line_chart


def checkpoint_charts(folder: Path) -> list[LineChart]:
    """A chart for each evaluation and metric, a line for each protocol and subset."""
    found: dict[str, dict[str, Points]] = {}
    for step, path, row in scores_over_steps(folder):
        if is_important(row) and not row["protocol"].endswith("/any-tie-order"):
            title = f"{path.parent.name}: {METRIC_NAMES.get(row['name'], row['name'])}"
            line = row["protocol"] if row["subset"] == "overall" else f"{row['protocol']}, {row['subset']}"
            found.setdefault(title, {}).setdefault(line, []).append((step, float(row["value"])))
    return [line_chart(title, series) for title, series in found.items()]
