"""The scores of each evaluation with their intervals, beside blind, shuffled and chance, and the paper's row."""

from html import escape
from pathlib import Path
from typing import Any

from eval.metrics.vqa_accuracy import LEGACY, OFFICIAL
from eval.reporting.evaluations import QUESTION_SCORES, Compared, Evaluation
from eval.reporting.paper import PaperRow, paper_row
from eval.reporting.verdicts import deviations, verdict, why_not_comparable
from pipeline.pages.page import table

CHANCE = "ret/chance"
BASELINE_NAMES = {"none": "Without picture", "shuffled": "Another picture"}
METRIC_NAMES = {
    "accuracy": "Accuracy",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
    **{"meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "spice": "SPICE"},
    **{f"tr_at_{k}": f"Text retrieval R@{k}" for k in (1, 5, 10)},
    **{f"ir_at_{k}": f"Image retrieval R@{k}" for k in (1, 5, 10)},
}
RULE_NAMES = {
    OFFICIAL: ", official rule",
    LEGACY: ", legacy rule",
    "okvqa/official-2021": ", official rule",
    "okvqa/legacy-2017": ", legacy rule",
    "okvqa/official-2021+lemmas": ", official rule, lemmas",
    "okvqa/legacy-2017+lemmas": ", legacy rule, lemmas",
    "gqa/exact": ", exact",
    "gqa/normalised": ", both sides normalised",
    "gqa/lavis": ", prediction normalised",
}


def scores_section(compared: list[Compared]) -> str:
    """One card an evaluation."""
    if not compared:
        return ""
    return f'<h2>Scores</h2><div class="scores">{"".join(map(_card, compared))}</div>'


def _card(compared: Compared) -> str:
    main, paper = compared.main, paper_row(compared.main)
    if main.metrics is None:
        body = f'<p class="note">{_not_scored(main, paper)}</p>'
    else:
        body = _retrieval(main, paper) if main.kind == "retrieval" else _generated(compared, paper)
    return (
        f'<article class="panel"><h3>{escape(main.title)}</h3><p class="note">{escape(_about(main))}</p>'
        f"{body}{_outside_note(main)}{_paper_note(main, paper) if main.metrics else ''}</article>"
    )


def _not_scored(main: Evaluation, paper: PaperRow | None) -> str:
    """How to have it scored; of hidden answers, what the paper has from the same server."""
    if paper is None or not paper.hidden:
        return f"Not scored: run eval.score with --output {escape(str(main.folder / 'metrics.json'))}."
    numbers = ", ".join(f"{value:.{paper.decimals}f} {subset}" for subset, value in paper.values["accuracy"].items())
    return (
        "Not scored: the answers are the server's; eval.submit writes its file, of all of test2015. "
        f"Paper: {escape(paper.model)}, {escape(paper.setting)}: {numbers}."
    )


def _about(evaluation: Evaluation) -> str:
    task, parts = evaluation.task, [evaluation.folder.name]
    if task["image_source"] != "own":
        parts.append(BASELINE_NAMES[task["image_source"]].lower())
    if task.get("language"):
        parts.append(f"language model {task['language'].rsplit('/', 1)[-1]}")
    if evaluation.metrics:
        counted = "questions" if evaluation.kind in QUESTION_SCORES else "images"
        texts = f", {evaluation.metrics['texts']} texts" if "texts" in evaluation.metrics else ""
        parts.append(f"{evaluation.metrics['n']} {counted}{texts}")
    if task.get("prompt") is not None:
        parts.append(f'prompt "{task["prompt"]}"')
        parts.append(f"{task['num_beams']} beams, {task['min_new_tokens']}-{task['max_new_tokens']} tokens")
    parts.append(f"weights {task['weights_sha256'][:12]}")
    return " · ".join(parts)


def _generated(compared: Compared, paper: PaperRow | None) -> str:
    """Captions and answers: one row a metric and subset, a column a baseline."""
    main = compared.main
    header = ["", "Score", "95% interval"]
    header += [BASELINE_NAMES[name] for name in compared.baselines] + (["Paper"] if paper else [])
    reasons = why_not_comparable(main, paper) if paper else []
    shown: list[list[str]] = []
    folded: list[list[str]] = []
    for row in main.rows():
        name, protocol, subset = row["name"], row["protocol"], row["subset"]
        baselines = [each.value(name, protocol, subset) for each in compared.baselines.values()]
        beside = _with_verdict(row, paper, reasons) if paper and protocol == paper.protocol else ""
        decimals = paper.decimals if paper and beside else 1
        cells = [_label(row), f"<b>{_number(row['value'], decimals)}</b>", _interval(row, decimals)]
        cells += [*map(_number, baselines), *([beside] if paper else [])]
        (shown if beside or is_important(row) else folded).append(cells)
    more = f"<details><summary>{len(folded)} more</summary>{table(header, folded)}</details>" if folded else ""
    return table(header, shown) + more


def is_important(row: dict[str, Any]) -> bool:
    """Whether a row is shown at once: all overall numbers, CIDEr by domain, official accuracy by answer type."""
    subset = str(row["subset"])
    by_answer = row["protocol"] in QUESTION_SCORES.values() and subset.startswith(("answer_type=", "structural="))
    return subset == "overall" or row["name"] == "cider" or by_answer


def _label(row: dict[str, Any]) -> str:
    """The metric, its rule where there are several, and the subset; an accuracy's is named without the metric."""
    label, rule = METRIC_NAMES.get(row["name"], row["name"]), RULE_NAMES.get(row["protocol"], "")
    if row["subset"] == "overall":
        return f"{label}{rule}"
    subset = escape(row["subset"].split("=")[-1])
    soft = rule.removeprefix(", ") if rule else subset
    return f'{subset if rule else label}<span class="subset">{soft}</span>'


def _retrieval(main: Evaluation, paper: PaperRow | None) -> str:
    """One row a recall; ITC alone, after the rerank, chance, paper."""
    protocols = list(dict.fromkeys(row["protocol"] for row in main.rows() if "/any-tie-order" not in row["protocol"]))
    stages = [protocol for protocol in protocols if protocol != CHANCE]
    titles = ["ITC alone" if stage == "ret/itc" else "ITM rerank" for stage in stages]
    header = ["", *(f'{title} <span class="interval">(95%)</span>' for title in titles), "Chance"]
    header += ["Paper"] if paper else []
    reasons = why_not_comparable(main, paper) if paper else []
    rows = []
    for name in (name for name in METRIC_NAMES if "_at_" in name):
        cells = [METRIC_NAMES[name]]
        for stage in stages:
            found = [row for row in main.rows(stage) if row["name"] == name]
            cells.append(f"<b>{_number(found[0]['value'])}</b> {_interval(found[0])}" if found else "")
        cells.append(_number(main.value(name, CHANCE, "overall")))
        if paper:
            found = [row for row in main.rows(paper.protocol) or main.rows(stages[-1]) if row["name"] == name]
            cells.append(_with_verdict(found[0] if found else None, paper, reasons))
        rows.append(cells)
    return table(header, rows)


def _learnt_from(main: Evaluation) -> str:
    """The data and the weights that a recipe names: only their names are known here."""
    recipe = main.task["recipe"] or {}
    data, first = recipe.get("data", {}), recipe.get("init_weights")
    data = data.get("manifest") or data.get("urls")
    begun = f", begun with {escape(str(first))}" if first else ""
    return f"on {escape(str(data))}{begun}, whose contents are not compared"


def _paper_note(main: Evaluation, paper: PaperRow | None) -> str:
    if paper is None:
        return ""
    note = f"Paper: {escape(paper.model)}, {escape(paper.setting)} (<code>{escape(paper.protocol)}</code>)"
    if reasons := why_not_comparable(main, paper):
        return f'<p class="note">{note} &ndash; <b>not comparable</b>: {escape("; ".join(reasons))}.</p>'
    found = deviations(main)
    listed = "".join(f"<li>{escape(each)}</li>" for each in found or ())
    trained = f"trained by a recipe without deviations from the shipped one, {_learnt_from(main)}"
    if found is None:
        trained = "how these weights were trained is not known, or no shipped recipe has these towers"
    note += " &ndash; the same towers, set and decoding; "
    if paper.is_fine_tuned:
        note += "whether these weights were fine-tuned so is not known; "
    return (
        f'<p class="note">{note}{trained}.</p>'
        if not listed
        else (
            f'<p class="note">{note}the recipe deviates from the shipped one:</p><ul class="deviations">{listed}</ul>'
        )
    )


def _with_verdict(row: dict[str, Any] | None, paper: PaperRow, reasons: list[str]) -> str:
    """The paper's number, and what ours says of it."""
    printed = paper.value(row["name"], row["subset"]) if row else None
    if row is None or printed is None:
        return ""
    said = verdict(row, printed, reasons, paper.decimals)
    return f'{printed:.{paper.decimals}f} <span class="verdict {said.replace(" ", "-")}">{said}</span>'


def _outside_note(main: Evaluation) -> str:
    """What was not computed, and the differences to another run."""
    parts = []
    metrics = main.metrics or {}
    if left := metrics.get("not_computed"):
        names = ", ".join(METRIC_NAMES.get(name, name) for name in left)
        parts.append(f'<p class="note">Not computed: {escape(names)}.</p>')
    if against := metrics.get("against"):
        rows = [
            [_label(row), f"<b>{row['value']:+.2f}</b>", _interval(row)]
            for row in against["metrics"]
            if row["subset"] == "overall"
        ]
        title = f"Against {escape(Path(against['predictions']).parent.name)}, in pairs"
        parts.append(table([title, "Difference", "95% interval"], rows))
    return "".join(parts)


def _number(value: float | None, decimals: int = 1) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _interval(row: dict[str, Any], decimals: int = 1) -> str:
    if row["low"] is None or row["high"] is None:
        return ""
    return f'<span class="interval">{row["low"]:.{decimals}f} &ndash; {row["high"]:.{decimals}f}</span>'
