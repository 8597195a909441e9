"""Tables of scores: each score with its interval, its baselines (blind, shuffled, chance) and the paper's number."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.catalogue import TASKS
from eval.reporting.evaluations import QUESTION_SCORES, Compared, Evaluation
from eval.reporting.paper import PaperRow
from eval.reporting.training_sources import trained_questions
from eval.reporting.verdicts import verdict

CHANCE = "ret/chance"
BASELINE_NAMES = {"none": "Without picture", "shuffled": "Another picture"}
METRIC_NAMES = {
    "accuracy": "Accuracy",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
    **{"meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "spice": "SPICE"},
    **{f"tr_at_{k}": f"Text retrieval R@{k}" for k in (1, 5, 10)},
    **{f"ir_at_{k}": f"Image retrieval R@{k}" for k in (1, 5, 10)},
    **{"tr_mean": "Text retrieval, mean", "ir_mean": "Image retrieval, mean", "mean_recall": "Mean recall"},
}
RETRIEVAL_METRICS = [name for name in METRIC_NAMES if "_at_" in name] + ["mean_recall"]
RULE_NAMES = {protocol: name for task in TASKS.values() for protocol, name in task.rules.items()}


@dataclass(frozen=True)
class Cell:
    """The parts of a cell. Each part has its own look; most cells have one or two."""

    score: str = ""
    text: str = ""
    subset: str = ""
    interval: tuple[str, str] | None = None
    small: str = ""
    verdict: str = ""


Row = list[Cell]


@dataclass(frozen=True)
class Table:
    """The first cell of each row is its heading. `folded` are further rows, shown on a click."""

    header: Row
    rows: list[Row]
    folded: list[Row]


def generated_table(compared: Compared, paper: PaperRow | None, reasons: list[str]) -> Table:
    """Captions and answers: one row for each metric and subset, a column for each baseline."""
    header, is_meaningless = ["", "Score", "95% interval"], bool(trained_questions(compared.main))
    header += [BASELINE_NAMES[name] for name in compared.baselines] + (["Paper"] if paper else [])
    shown: list[Row] = []
    folded: list[Row] = []
    for row in compared.main.rows():
        name, protocol, subset = row["name"], row["protocol"], row["subset"]
        baselines = [each.value(name, protocol, subset) for each in compared.baselines.values()]
        beside = Cell()
        if paper and protocol == paper.protocol:
            beside = _paper_cell(row, paper, reasons, is_meaningless)
        decimals = paper.decimals if paper and beside.text else 1
        cells = [_label(row), Cell(score=_number(row["value"], decimals)), Cell(interval=_interval(row, decimals))]
        cells += [Cell(text=_number(value)) for value in baselines] + ([beside] if paper else [])
        (shown if beside.text or is_important(row) else folded).append(cells)
    return Table([Cell(text=each) for each in header], shown, folded)


def retrieval_table(main: Evaluation, paper: PaperRow | None, reasons: list[str]) -> Table:
    """One row for each recall. Columns: ITC alone, after the ITM rerank, chance, the paper."""
    protocols = list(dict.fromkeys(row["protocol"] for row in main.rows() if "/any-tie-order" not in row["protocol"]))
    stages = [protocol for protocol in protocols if protocol != CHANCE]
    titles = ["ITC alone" if stage == "ret/itc" else "ITM rerank" for stage in stages]
    header = [Cell(), *(Cell(text=title, small="(95%)") for title in titles), Cell(text="Chance")]
    header += [Cell(text="Paper")] if paper else []
    last_stage = [row for stage in stages[-1:] for row in main.rows(stage)]
    rows = []
    known = {row["name"] for row in main.rows()}
    for name in (name for name in RETRIEVAL_METRICS if name in known):
        cells = [Cell(text=METRIC_NAMES[name])]
        for stage in stages:
            found = [row for row in main.rows(stage) if row["name"] == name]
            cells.append(Cell(score=_number(found[0]["value"]), interval=_interval(found[0])) if found else Cell())
        cells.append(Cell(text=_number(main.value(name, CHANCE, "overall"))))
        if paper:
            found = [row for row in main.rows(paper.protocol) or last_stage if row["name"] == name]
            cells.append(_paper_cell(found[0], paper, reasons) if found else Cell())
        rows.append(cells)
    return Table(header, rows, [])


def difference_table(against: dict[str, Any]) -> Table:
    """The overall differences to another run's predictions, `against` of metrics.json."""
    title = f"Compared with {Path(against['predictions']).parent.name}, in pairs"
    rows = [
        [_label(row), Cell(score=f"{row['value']:+.2f}"), Cell(interval=_interval(row))]
        for row in against["metrics"]
        if row["subset"] == "overall"
    ]
    return Table([Cell(text=each) for each in (title, "Difference", "95% interval")], rows, [])


def is_important(row: dict[str, Any]) -> bool:
    """Whether a row is shown at once: all overall numbers, CIDEr by domain, official accuracy by answer type."""
    subset = str(row["subset"])
    by_answer = row["protocol"] in QUESTION_SCORES.values() and subset.startswith(("answer_type=", "structural="))
    return subset == "overall" or row["name"] == "cider" or by_answer


def _label(row: dict[str, Any]) -> Cell:
    """Metric, rule and subset. A subset of an accuracy is named without the metric."""
    label, rule = METRIC_NAMES.get(row["name"], row["name"]), RULE_NAMES.get(row["protocol"], "")
    if row["subset"] == "overall":
        return Cell(text=f"{label}, {rule}" if rule else label)
    subset = row["subset"].split("=")[-1]
    return Cell(text=subset, subset=rule) if rule else Cell(text=label, subset=subset)


def _paper_cell(row: dict[str, Any], paper: PaperRow, reasons: list[str], is_meaningless: bool = False) -> Cell:
    """The paper's number, and whether ours agrees. Empty when the paper has none."""
    printed = paper.value(row["name"], row["subset"])
    if printed is None:
        return Cell()
    said = verdict(row, printed, reasons, paper.decimals, is_meaningless)
    return Cell(text=f"{printed:.{paper.decimals}f}", verdict=said)


def _number(value: float | None, decimals: int = 1) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _interval(row: dict[str, Any], decimals: int = 1) -> tuple[str, str] | None:
    low, high = row["low"], row["high"]
    return None if low is None or high is None else (_number(low, decimals), _number(high, decimals))
