"""The row of the paper that stands beside a result, read from eval/paper.yaml."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from eval.reporting.evaluations import Evaluation

PAPER_FILE = Path(__file__).parent.parent / "paper.yaml"
NOT_VALUES = ("vision", "language", "evaluation")  # of a row


@dataclass(frozen=True)
class PaperRow:
    """The paper's numbers for one task: of the same towers (`comparable`), otherwise the best row of the table."""

    table: int
    model: str
    setting: str
    tuned_on: str  # captions, questions or retrieval; empty when zero-shot
    itg: bool  # whether ITG was an objective of fine-tuning
    protocol: str
    comparable: bool
    values: dict[str, Any]
    evaluation: dict[str, Any]  # how the paper predicted: fields of task.json
    hidden: bool  # whether only a server has the answers
    decimals: int  # of the numbers in the paper

    @property
    def is_fine_tuned(self) -> bool:
        return bool(self.tuned_on)

    def value(self, name: str, subset: str) -> float | None:
        found = self.values.get(name)
        if isinstance(found, dict):
            found = found.get(subset)
        elif subset != "overall":
            return None
        return None if found is None else float(found)

    def printed(self, name: str) -> list[str]:
        """The number of each subset, as the paper prints it."""
        return [f"{value:.{self.decimals}f} {subset}" for subset, value in self.values[name].items()]


@lru_cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PAPER_FILE.read_text(encoding="utf-8"))
    return content


def paper_row(evaluation: Evaluation) -> PaperRow | None:
    """The paper's row for this task and data set; None when the paper has none.

    Of several tables, weights that were trained here have the one of their fine-tuning, or of none. Others have the one
    with this picture size. Otherwise it is the first.
    """
    tables = [table for table in _content()["tables"] if _is_of(table, evaluation)]
    if not tables:
        return None
    table = _table_of(tables, evaluation)
    towers = _content()["towers"]
    found, same = table["rows"][-1], False
    for row in table["rows"]:
        if all(_is_tower(evaluation.task.get(part), row.get(part)) for part in ("vision", "language")):
            found, same = row, True
    model = " + ".join(towers[found[part]]["shown"] for part in ("vision", "language") if part in found)
    values = {name: value for name, value in found.items() if name not in NOT_VALUES}
    predicted = table["evaluation"] | found.get("evaluation", {})
    if table.get("asks"):
        predicted["prompt"] = towers[found["language"]]["prompt"]
    return PaperRow(
        table=table["table"],
        model=model,
        setting=table["setting"],
        tuned_on=table.get("tuned_on", ""),
        itg=table.get("itg", True),
        protocol=table["protocol"],
        comparable=same,
        values=values,
        evaluation=predicted,
        hidden=bool(table.get("hidden")),
        decimals=int(table.get("decimals", 1)),
    )


def retrieval_values() -> dict[bool, dict[str, float]]:
    """Recalls of ViT-g fine-tuned on COCO, with ITG among the objectives (True) and without: both rows of Table 6."""
    tables = [table for table in _content()["tables"] if table["task"] == "retrieval"]
    of_coco = [table for table in tables if table["data"] == "COCO Karpathy test"]
    rows = {bool(table.get("itg", True)): table["rows"] for table in of_coco}
    return {
        itg: {
            name: value for row in found if row["vision"] == "vit_g" for name, value in row.items() if name != "vision"
        }
        for itg, found in rows.items()
    }


def _table_of(tables: list[dict[str, Any]], evaluation: Evaluation) -> dict[str, Any]:
    if evaluation.is_trained_here:
        objectives = (evaluation.task.get("recipe") or {}).get("objectives") or {}
        trained = evaluation.tuned_on, objectives.get("itg_weight") != 0 or not evaluation.tuned_on
        for table in tables:
            if (table.get("tuned_on", ""), table.get("itg", True)) == trained:
                return table
    size = evaluation.task.get("image_size_px")
    return next((each for each in tables if each["evaluation"]["image_size_px"] == size), tables[0])


def _is_of(table: dict[str, Any], evaluation: Evaluation) -> bool:
    data = table["data"] if isinstance(table["data"], list) else [table["data"]]
    return table["task"] == evaluation.kind and evaluation.format_of in data


def _is_tower(name: str | None, key: str | None) -> bool:
    if key is None or name is None:
        return key is None and name is None
    return str(name).removeprefix("hf-hub:timm/") in _content()["towers"][key]["names"]
