"""A summary.json of nested numbers as tables: one panel a top-level name, what stands alone first."""

from html import escape
from pathlib import Path
from typing import Any

from eval.sets.official_files import read_json
from pipeline.pages.page import table

LONG = 12  # rows; longer panels are folded
NAMES = {
    "tr_at_1": "text retrieval R@1",
    "ir_at_1": "image retrieval R@1",
    "tr_at_1_itc_only": "text retrieval R@1, ITC alone",
    "ir_at_1_itc_only": "image retrieval R@1, ITC alone",
    "chance_at_1": "chance",
    **{"vqa": "VQA", "t5": "T5", "opt": "OPT", "cider": "CIDEr", "shuffled_cider": "CIDEr, another picture"},
    **{"blind": "accuracy without picture", "peak_rss_mb": "MB of memory at the peak"},
}


def summary_section(path: Path) -> str:
    """Raises ValueError in one line when the file is no JSON object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"--summary {path}: expected a JSON object")
    tiles = "".join(
        f"<li><b>{_shown(value)}</b><span>{_words(name)}</span></li>"
        for name, value in content.items()
        if not isinstance(value, dict)
    )
    panels = "".join(_panel(name, value) for name, value in content.items() if isinstance(value, dict))
    tiles = f'<ul class="tiles">{tiles}</ul>' if tiles else ""
    return f'<h2>Summary</h2>{tiles}<div class="panels">{panels}</div>'


def _panel(name: str, content: dict[str, Any]) -> str:
    rows = [[label, _shown(value)] for label, value in _flat(content)]
    body = table(["", ""], rows, "plain")
    if len(rows) > LONG:
        total = sum(value for _, value in _flat(content) if isinstance(value, int | float))
        body = f"<details><summary>{len(rows)} entries, {_shown(total)} one after the other</summary>{body}</details>"
    return f'<article class="panel"><h3>{_words(name)}</h3>{body}</article>'


def _flat(content: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in content.items():
        label = f"{above} &rsaquo; {_words(name)}" if above else _words(name)
        rows += _flat(value, label) if isinstance(value, dict) else [(label, value)]
    return rows


def _words(name: str) -> str:
    return escape(NAMES.get(name, name.replace("_", " ")))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(str(value))
