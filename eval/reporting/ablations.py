"""The paper's ablations with several seeds: Figure 5 (stage 2 without stage 1) and Table 6 (fine-tuning without ITG).

Means over seeds, with intervals, beside what the paper says; and whether its effects show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from eval.reporting.evaluations import QUESTION_SCORES, Evaluation
from eval.reporting.files import check_scores_are_of, read_metrics, read_task
from eval.reporting.paper import retrieval_values
from eval.reporting.scores import METRIC_NAMES, Cell, Table
from eval.reporting.selection import COMPARED
from eval.reporting.verdicts import differing_fields
from eval.tasks.task_folder import official_name
from pipeline.pages.charts import LineChart, line_chart

SHOWN, NOT_SHOWN, REVERSE, NO_INTERVAL = "shown", "not shown", "the reverse", "one seed"
LEVEL = 0.95
RERANK = "/itm+itc"
BySeed = dict[int, float]
ARMS = {True: "from stage 1", False: "without stage 1"}
ITG_WEIGHT = "objectives.itg_weight"
SEEDS = "A seed decides the order of samples, the crops, the captions and the fresh weights."
VERDICTS = (
    f'"{SHOWN}": the interval of the difference lies above 0; "{NOT_SHOWN}": it holds 0; "{REVERSE}": it lies below 0. '
    "Differences are those of the same seed."
)
ABOUT_FIGURE_5 = (
    "The paper says that both kinds of language models answer clearly worse without stage 1, and that OPT gets worse "
    "as training goes on. It prints no numbers.",
    "Without stage 1, a bridge starts from BERT: self-attention, and feed-forward layers, those of the queries too. "
    "Queries, cross-attention and the projection are random. LAVIS leaves the queries' feed-forward layers random as "
    "well.",
)
ABOUT_TABLE_6 = "The paper's numbers are of ViT-g on COCO's Karpathy test split with 128 candidates, one run each."


@dataclass(frozen=True)
class Mean:
    """Of the seeds' values. One seed has no interval."""

    value: float
    low: float | None
    high: float | None

    def cell(self, sign: str = "") -> Cell:
        ends = (self.low, self.high)
        shown = None if None in ends else (f"{self.low:{sign}.1f}", f"{self.high:{sign}.1f}")
        return Cell(score=f"{self.value:{sign}.1f}", interval=shown)


@dataclass(frozen=True)
class Ablation:
    """One section; `notes` say what the paper found, and how these runs were made."""

    title: str
    charts: list[LineChart]
    tables: list[Table]
    notes: list[str]


def mean_of_seeds(values: BySeed) -> Mean:
    """The mean, and its 95% interval by Student's t: the seeds' values are taken as normal and independent."""
    from scipy.special import stdtrit

    found, number = list(values.values()), len(values)
    if number < 2:
        return Mean(mean(found), None, None)
    half = float(stdtrit(number - 1, (1 + LEVEL) / 2)) * stdev(found) / number**0.5
    return Mean(mean(found), mean(found) - half, mean(found) + half)


def difference(one: BySeed, other: BySeed) -> Mean | None:
    """The mean of one less the other, in pairs of the same seed. None when no seed is in both."""
    pairs = {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}
    return mean_of_seeds(pairs) if pairs else None


def effect(found: Mean) -> str:
    """Whether a difference that the paper finds above 0 is above 0 here too, beyond the seeds' noise."""
    if found.low is None or found.high is None:
        return NO_INTERVAL
    return SHOWN if found.low > 0 else REVERSE if found.high < 0 else NOT_SHOWN


def ablations(folders: Sequence[Path]) -> list[Ablation]:
    """Figure 5 and Table 6, each if there are evaluations of it. Raises ValueError in one line for folders without."""
    given = [_read(each) for folder in folders for each in _evaluations_in(folder)]
    scored = [each for each in given if each.metrics]
    answered = [each for each in scored if _is_of_figure_5(each)]
    ranked = [each for each in scored if each.kind == "retrieval" and each.tuned_on == "retrieval"]
    if folders and not answered and not ranked:
        raise ValueError(
            f"--ablations {folders[0]}: has no scores of zero-shot VQA after stage 2, or of retrieval after "
            "fine-tuning; give such evaluations, scored"
        )
    found = [figure_5(answered)] if answered else []
    found += [table_6(ranked)] if ranked else []
    if len(scored) < len(given):
        found[0].notes.append(f"Left out: {len(given) - len(scored)} evaluations without scores.")
    return found


def _evaluations_in(folder: Path) -> list[Path]:
    if (folder / "task.json").is_file():
        return [folder]
    found = [path.parent for path in sorted(folder.glob("step_*/*/task.json"))]
    if not found:
        raise ValueError(f"--ablations {folder}: has no task.json; give folders of eval.run or of eval.watch")
    return found


def _read(folder: Path) -> Evaluation:
    """An evaluation without its samples, which are not shown here."""
    task, scored = read_task(folder / "task.json"), folder / "metrics.json"
    metrics = read_metrics(scored, task["task"]) if scored.is_file() else None
    if metrics:
        check_scores_are_of(scored, metrics, folder / official_name(task["task"]))
    return Evaluation(folder, task, metrics)


def _is_of_figure_5(each: Evaluation) -> bool:
    is_zero_shot = each.kind == "vqa" and each.task["image_source"] == "own" and not each.tuned_on
    return is_zero_shot and each.is_trained_here and each.task.get("step") is not None


def _seed(each: Evaluation) -> int:
    return int(each.task["recipe"]["seed"])


def _by_seed(evaluations: Sequence[Evaluation], metric: str, protocol: str) -> BySeed:
    """One metric of runs that differ in the seed alone. Raises ValueError when a seed occurs twice."""
    found: dict[int, Evaluation] = {}
    for each in evaluations:
        if other := found.get(_seed(each)):
            raise ValueError(
                f"--ablations {each.folder}: is of seed {_seed(each)} like {other.folder}; give one of them"
            )
        found[_seed(each)] = each
    values = {seed: each.value(metric, protocol, "overall") for seed, each in sorted(found.items())}
    return {seed: value for seed, value in values.items() if value is not None}


def _check_same_settings(evaluations: Sequence[Evaluation]) -> None:
    first = evaluations[0]
    for each in evaluations[1:]:
        for name in COMPARED:
            one, other = first.task.get(name), each.task.get(name)
            if one != other:
                raise ValueError(
                    f"--ablations {each.folder}: {name} {other!r:.40}, but {one!r:.40} in {first.folder}; evaluate all "
                    "with the same settings"
                )


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """How the runs were made, and what the verdicts mean."""
    recipes = [each.task["recipe"] for each in evaluations]
    seeds = sorted({_seed(each) for each in evaluations})
    means = f"means, with 95% intervals by Student's t over {len(seeds)} seeds" if len(seeds) > 1 else "no intervals"
    begun = sorted({str(recipe["init_weights"]) for recipe in recipes if recipe["init_weights"]})
    manifests = sorted({str(recipe["data"].get("manifest")) for recipe in recipes})
    return [
        f"Seeds {', '.join(map(str, seeds))}: {means}. {SEEDS} First weights: {', '.join(begun)}. "
        f"Trained on {', '.join(manifests)}. Evaluated on {evaluations[0].title}.",
        VERDICTS,
    ]


def _other_differences(evaluations: Sequence[Evaluation], wanted: str = "") -> list[str]:
    """A note on the recipe fields in which the runs differ, but for first weights, seed and the `wanted` field."""
    first = evaluations[0].task["recipe"]
    fields = {name for each in evaluations for name in differing_fields(each.task["recipe"], first)} - {wanted}
    return [f"The runs also differ in {', '.join(sorted(fields))}."] if fields else []


def figure_5(evaluations: Sequence[Evaluation]) -> Ablation:
    """For each language model a chart and a table of accuracy over steps, and whether the paper's effects show."""
    charts, tables, effects, notes = list[LineChart](), list[Table](), list[list[Cell]](), list(ABOUT_FIGURE_5)
    for language in sorted({str(each.task["language"]) for each in evaluations}):
        of_model = [each for each in evaluations if str(each.task["language"]) == language]
        _check_same_settings(of_model)
        name, curves = Path(language).name, _curves(of_model)
        means = {arm: {step: mean_of_seeds(of[step]) for step in of} for arm, of in curves.items()}
        charts.append(_chart(f"Zero-shot VQA accuracy, {name}", means))
        tables.append(_accuracies(name, means))
        effects += _claims(name, curves)
        notes += [f"{name}: {note}" for note in _other_differences(of_model)]
    header = [Cell(text=each) for each in ("", "Difference", "Paper", "Here")]
    tables.insert(0, Table(header, effects, []))
    return Ablation("Figure 5: stage 2 without stage 1", charts, tables, [*notes, *_notes(evaluations)])


def _curves(evaluations: Sequence[Evaluation]) -> dict[bool, dict[int, BySeed]]:
    """Accuracy of each seed by whether there were first weights, and by step."""
    groups: dict[bool, dict[int, list[Evaluation]]] = {True: {}, False: {}}
    for each in sorted(evaluations, key=lambda each: int(each.task["step"])):
        begun = each.task["recipe"]["init_weights"] is not None
        groups[begun].setdefault(int(each.task["step"]), []).append(each)
    return {
        begun: {step: _by_seed(found, "accuracy", QUESTION_SCORES["vqa"]) for step, found in steps.items()}
        for begun, steps in groups.items()
        if steps
    }


def _chart(title: str, means: dict[bool, dict[int, Mean]]) -> LineChart:
    lines = {ARMS[arm]: [(float(step), each.value) for step, each in of.items()] for arm, of in means.items()}
    ends = {
        ARMS[arm]: [(float(step), each.low, each.high) for step, each in of.items() if each.low is not None]
        for arm, of in means.items()
    }
    return line_chart(title, lines, ends)  # type: ignore[arg-type]


def _accuracies(name: str, means: dict[bool, dict[int, Mean]]) -> Table:
    steps = sorted({step for of in means.values() for step in of})
    header = [Cell(text=f"{name}, step"), *(Cell(text=f"{step:,}") for step in steps)]
    empty = Cell()
    rows = [
        [Cell(text=ARMS[arm]), *(of[step].cell() if step in of else empty for step in steps)]
        for arm, of in means.items()
    ]
    return Table(header, rows, [])


def _claims(name: str, curves: dict[bool, dict[int, BySeed]]) -> list[list[Cell]]:
    """The differences that the paper speaks of. That accuracy falls as training goes on is said of OPT alone."""
    rows, plain = [], curves.get(False, {})
    both = sorted(curves.get(True, {}).keys() & plain.keys())
    gain = difference(curves[True][both[-1]], plain[both[-1]]) if both else None
    if gain:
        said = Cell(text=f"{name}, step {both[-1]:,}: from stage 1 less without")
        rows.append([said, gain.cell("+"), Cell(text="clearly above 0"), Cell(verdict=effect(gain))])
    steps = sorted(plain)
    fall = difference(plain[steps[0]], plain[steps[-1]]) if len(steps) > 1 else None
    if fall:
        said = Cell(text=f"{name} without stage 1: step {steps[0]:,} less step {steps[-1]:,}")
        paper = "above 0" if "opt" in name.lower() else ""
        rows.append([said, fall.cell("+"), Cell(text=paper or "not said"), Cell(verdict=effect(fall) if paper else "")])
    return rows


def table_6(evaluations: Sequence[Evaluation]) -> Ablation:
    """Recall after fine-tuning with and without ITG; of a run with several checkpoints, the last."""
    _check_same_settings(evaluations)
    in_order = sorted(evaluations, key=lambda each: int(each.task.get("step") or 0))
    last = list({each.task["recipe"]["run"]["output"]: each for each in in_order}.values())
    arms = {itg: [each for each in last if _has_itg(each) == itg] for itg in (False, True)}
    found = [row["protocol"] for each in last for row in each.rows() if row["protocol"].endswith(RERANK)]
    paper, rows = retrieval_values(), list[list[Cell]]()
    for metric in (name for name in METRIC_NAMES if name in paper[True] and name in paper[False]):
        values = {itg: _by_seed(arm, metric, found[0]) if found else {} for itg, arm in arms.items()}
        means = [mean_of_seeds(values[itg]).cell() if values[itg] else Cell() for itg in arms]
        gain = difference(values[True], values[False])
        printed = [*(f"{paper[itg][metric]:.1f}" for itg in arms), f"{paper[True][metric] - paper[False][metric]:+.1f}"]
        ours = [*means, gain.cell("+") if gain else Cell()]
        rows.append([Cell(text=METRIC_NAMES[metric]), *ours, *(Cell(text=each) for each in printed),
                     Cell(verdict=effect(gain) if gain else "")])  # fmt: skip
    columns = (
        "",
        "ITC + ITM",
        "with ITG",
        "Difference",
        "Paper: ITC + ITM",
        "Paper: with ITG",
        "Paper: difference",
        "Here",
    )
    table = Table([Cell(text=each) for each in columns], rows, [])
    notes = [ABOUT_TABLE_6, *_other_differences(last, ITG_WEIGHT), *_notes(last)]
    return Ablation("Table 6: fine-tuning for retrieval without ITG", [], [table], notes)


def _has_itg(each: Evaluation) -> bool:
    return bool(each.task["recipe"]["objectives"]["itg_weight"])
