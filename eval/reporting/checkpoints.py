"""Curves of scores over the checkpoints of a run, from FOLDER/step_N/NAME/metrics.json."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from eval.reporting.files import scores_over_steps
from eval.reporting.scores import METRIC_NAMES, is_important
from eval.reporting.training_curves import Points, chart


def checkpoints_section(folders: Sequence[Path]) -> str:
    """A chart for each evaluation and metric, a line for each protocol and subset."""
    parts = []
    for folder in folders:
        charts = [chart(title, series) for title, series in _curves(folder).items()]
        if charts:
            parts.append(f'<h3>{escape(folder.name)}</h3><div class="charts">{"".join(charts)}</div>')
    return f"<h2>Scores over checkpoints</h2>{''.join(parts)}" if parts else ""


def _curves(folder: Path) -> dict[str, dict[str, Points]]:
    found: dict[str, dict[str, Points]] = {}
    for step, path, row in scores_over_steps(folder):
        if is_important(row) and not row["protocol"].endswith("/any-tie-order"):
            title = f"{path.parent.name}: {METRIC_NAMES.get(row['name'], row['name'])}"
            line = row["protocol"] if row["subset"] == "overall" else f"{row['protocol']}, {row['subset']}"
            found.setdefault(title, {}).setdefault(line, []).append((step, float(row["value"])))
    return found
