"""Figure 5 and Table 6 in the report: means of seeds, intervals, the paper's numbers, and whether effects show."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from eval.report import main
from eval.reporting.ablations import ablations, difference, effect, mean_of_seeds
from pipeline.config import load_recipe

OPT, T5 = "stage2_vitg_opt2.7b", "stage2_vitg_flant5xl"
RETRIEVAL = "finetune_retrieval_vitg"
WITHOUT_STAGE_1, WITHOUT_ITG = "init_weights=null", "objectives.itg_weight=0"
Write = Callable[..., Path]


def row(name: str, protocol: str, value: float) -> dict[str, Any]:
    return {"name": name, "protocol": protocol, "subset": "overall", "value": value, "low": None, "high": None}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a scored evaluation of a shipped recipe with edits: folder, recipe, edits, step, rows of metrics.json."""

    def write(name: str, recipe: str, edits: list[str], step: int | None, rows: Any, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        content = load_recipe(Path(f"pipeline/recipes/{recipe}.yaml"), edits).model_dump(mode="json")
        task = {
            "task": "retrieval" if recipe == RETRIEVAL else "vqa", "images": [], "image_source": "own", "data": "data",
            "annotations": "q.json", "annotations_sha256": "cd" * 32, "weights_sha256": "ab" * 32, "split": "val",
            "limit": "all", "data_set": "VQAv2 val", "vision": content["vision"]["name"], "step": step,
            "language": (content["language"] or {}).get("name"), "recipe": content,
        }  # fmt: skip
        (folder / "task.json").write_text(json.dumps(task | changes))
        if rows:
            metrics = {"task": task["task"], "n": 10, "metrics": rows}
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return write


def answered(write: Write, name: str, recipe: str, seed: int, step: int, value: float, *edits: str) -> Path:
    rows = [row("accuracy", "vqa/official-2021", value), row("accuracy", "vqa/legacy-2017", 1.0)]
    output = f"run.output=runs/{name}-{seed}"
    return write(f"{name}-{seed}-{step}", recipe, [f"seed={seed}", output, *edits], step, rows)


def ranked(write: Write, name: str, seed: int, recalls: tuple[float, ...], *edits: str) -> Path:
    names = ("tr_at_1", "tr_at_5", "ir_at_1", "ir_at_5", "tr_at_10")
    rows = [row(metric, "ret/k16/itm+itc", value) for metric, value in zip(names, recalls, strict=True)]
    rows += [row(metric, "ret/itc", 0.0) for metric in names]
    return write(f"{name}-{seed}", RETRIEVAL, [f"seed={seed}", f"run.output=runs/{name}-{seed}", *edits], 120, rows)


def text_of(page: Path) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", page.read_text())).split())


def test_a_mean_of_seeds_has_students_interval_and_one_seed_has_none() -> None:
    found = mean_of_seeds({1: 40.0, 2: 43.0, 7: 44.0})
    low, high = stats.t.interval(0.95, 2, loc=127 / 3, scale=stats.sem([40.0, 43.0, 44.0]))
    assert found.value == pytest.approx(127 / 3)
    assert (found.low, found.high) == (pytest.approx(float(low)), pytest.approx(float(high)))
    assert mean_of_seeds({1: 40.0}).low is None


def test_differences_are_of_the_same_seed() -> None:
    """The seeds differ by 20, the starts always by 2 to 3: a difference of means would drown in that."""
    found = difference({1: 22.0, 2: 43.0, 3: 62.5, 4: 0.0}, {3: 60.0, 2: 40.0, 1: 20.0, 5: 99.0})
    assert found is not None and found.value == pytest.approx(2.5) and effect(found) == "shown"
    assert difference({1: 22.0}, {2: 20.0}) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((3.0, 4.0, 5.0), "shown"),
        ((-1.0, 4.0, 5.0), "not shown"),
        ((-3.0, -4.0, -5.0), "the reverse"),
        ((3.0,), "one seed"),
    ],
)
def test_an_effect_shows_only_beyond_the_noise_of_the_seeds(values: tuple[float, ...], said: str) -> None:
    assert effect(mean_of_seeds(dict(enumerate(values)))) == said


def test_figure_5_has_a_curve_of_each_start_and_says_what_shows(write: Write, tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2, 3):
        for step, with_it, without in ((100, 20.0, 18.0), (200, 50.0, 10.0)):
            folders.append(answered(write, "opt", OPT, seed, step, with_it + seed))
            folders.append(answered(write, "opt-plain", OPT, seed, step, without + seed, WITHOUT_STAGE_1))
        folders.append(answered(write, "t5", T5, seed, 100, 40.0 + 9 * seed))
        folders.append(answered(write, "t5-plain", T5, seed, 100, 68.0 - 5 * seed, WITHOUT_STAGE_1))
    [found] = ablations(folders)
    opt, t5 = found.charts
    assert [(line.name, line.last, len(line.points), len(line.intervals)) for line in opt.lines] == [
        ("from stage 1", "52", 2, 2), ("without stage 1", "12", 2, 2),
    ]  # fmt: skip
    assert [(line.name, line.last) for line in t5.lines] == [("from stage 1", "58"), ("without stage 1", "58")]
    effects = {cells[0].text: (cells[1].score, cells[3].verdict) for cells in found.tables[0].rows}
    assert effects == {
        "opt-2.7b, step 200: from stage 1 less without": ("+40.0", "shown"),
        "opt-2.7b without stage 1: step 100 less step 200": ("+8.0", "shown"),
        "flan-t5-xl, step 100: from stage 1 less without": ("+0.0", "not shown"),
    }
    page = tmp_path / "page.html"
    assert main(["--ablations", *map(str, folders), "--output", str(page)]) == 0
    text = text_of(page)
    assert "It prints no numbers" in text and "Seeds 1, 2, 3: means" in text and "also differ" not in text
    assert page.read_text().count("<polyline") == 2 and page.read_text().count("<circle") == 2


def test_table_6_stands_beside_the_papers_numbers(write: Write, tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2, 3):
        folders.append(ranked(write, "with", seed, (80.0 + seed, 95.0, 60.0 + 3 * seed, 80.0, 99.0)))
        folders.append(ranked(write, "without", seed, (79.0 + seed, 95.5, 66.0, 81.0, 99.0), WITHOUT_ITG))
    [found] = ablations(folders)
    rows = [[cell.score or cell.text or cell.verdict for cell in cells] for cells in found.tables[0].rows]
    assert rows == [
        ["Text retrieval R@1", "81.0", "82.0", "+1.0", "84.5", "85.4", "+0.9", "shown"],
        ["Text retrieval R@5", "95.5", "95.0", "-0.5", "96.2", "97.0", "+0.8", "the reverse"],
        ["Image retrieval R@1", "66.0", "66.0", "+0.0", "67.2", "68.3", "+1.1", "not shown"],
        ["Image retrieval R@5", "81.0", "80.0", "-1.0", "87.1", "87.7", "+0.6", "the reverse"],
    ]


def test_a_watched_run_and_one_seed_are_enough_and_what_differs_is_said(write: Write) -> None:
    """OUTPUT/RUN/step_N/NAME, as eval.watch leaves it; the last step counts. What has no scores is left out."""
    names = ("tr_at_1", "tr_at_5", "ir_at_1", "ir_at_5")
    for step, value in ((60, 10.0), (120, 20.0)):
        rows = [row(metric, "ret/k128/itm+itc", value) for metric in names]
        write(f"with/step_{step}/coco", RETRIEVAL, ["run.output=a"], step, rows)
    write("with/step_180/coco", RETRIEVAL, ["run.output=a"], 180, None)
    rows = [row(metric, "ret/k128/itm+itc", 15.0) for metric in names]
    plain = write("without", RETRIEVAL, [WITHOUT_ITG, "run.output=b", "optimizer.peak_learning_rate=1e-4"], 120, rows)
    [found] = ablations([plain.parent / "with", plain])
    cells = found.tables[0].rows[0]
    assert [cell.score for cell in cells[1:4]] == ["15.0", "20.0", "+5.0"] and cells[-1].verdict == "one seed"
    notes = " ".join(found.notes)
    assert "also differ in optimizer.peak_learning_rate." in notes and "Left out: 1 evaluations" in notes


def test_what_does_not_belong_together_is_refused(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = answered(write, "one", OPT, 1, 100, 20.0)
    again = answered(write, "again", OPT, 1, 100, 21.0)
    rows = [row("accuracy", "vqa/official-2021", 20.0)]
    other = write("other", OPT, ["seed=2"], 100, rows, prompt="Q: {}", num_beams=5, min_new_tokens=1, max_new_tokens=9)
    blind = write("blind", OPT, ["seed=2"], 100, rows, image_source="none")
    (tmp_path / "empty").mkdir()
    for folders, said in (
        ([first, again], f"{again}: is of seed 1 like {first}; give one of them"),
        ([first, other], f"{other}: prompt 'Q: {{}}', but None in {first}; evaluate all with the same settings"),
        ([blind], f"{blind}: has no scores of zero-shot VQA after stage 2, or of retrieval after fine-tuning"),
        ([tmp_path / "empty"], f"{tmp_path / 'empty'}: has no task.json; give folders of eval.run or of eval.watch"),
    ):
        assert main(["--ablations", *map(str, folders), "--output", str(tmp_path / "page.html")]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "page.html")])
    assert "argument DIR: is missing; give one or more, or --ablations" in capsys.readouterr().err
