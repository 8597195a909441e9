"""The numbers of a summary.json: a tile for each single number, a panel for each group of numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sets.official_files import read_json
from pipeline.files import LARGEST_JSON

LONG = 12  # rows; longer panels are folded
NAMES = {
    "tr_at_1": "text retrieval R@1",
    "ir_at_1": "image retrieval R@1",
    "tr_at_1_itc_only": "text retrieval R@1, ITC alone",
    "ir_at_1_itc_only": "image retrieval R@1, ITC alone",
    "chance_at_1": "chance",
    **{"vqa": "VQA", "t5": "T5", "opt": "OPT", "cider": "CIDEr", "shuffled_cider": "CIDEr, another picture"},
    **{"blind": "accuracy without picture", "peak_rss_mb": "peak memory, MB"},
}


@dataclass(frozen=True)
class Panel:
    """The numbers of one group: (name, value). `total` is their sum."""

    title: str
    rows: list[tuple[str, str]]
    total: str

    @property
    def is_long(self) -> bool:
        return len(self.rows) > LONG


@dataclass(frozen=True)
class Summary:
    """Tiles are (value, name)."""

    tiles: list[tuple[str, str]]
    panels: list[Panel]


def read_summary(path: Path) -> Summary:
    """Read the file. Raises ValueError in one line when it is not a JSON object."""
    content = read_json(path, LARGEST_JSON)
    if not isinstance(content, dict):
        raise ValueError(f"--summary {path}: is not a JSON object; give nested numbers, each with a name")
    tiles = [(_shown(value), _words(name)) for name, value in content.items() if not isinstance(value, dict)]
    return Summary(tiles, [_panel(name, value) for name, value in content.items() if isinstance(value, dict)])


def _panel(name: str, content: dict[str, Any]) -> Panel:
    rows = _flat(content)
    total = sum(value for _, value in rows if isinstance(value, int | float))
    return Panel(_words(name), [(label, _shown(value)) for label, value in rows], _shown(total))


def _flat(content: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in content.items():
        label = f"{above} › {_words(name)}" if above else _words(name)
        rows += _flat(value, label) if isinstance(value, dict) else [(label, value)]
    return rows


def _words(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
