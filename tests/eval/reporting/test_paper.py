"""eval/paper.yaml: every table has its fields, every row a place in the report, and Tables 3 to 6 find their runs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from eval.reporting.evaluations import Evaluation
from eval.reporting.paper import PAPER_FILE, PaperRow, paper_row
from eval.reporting.scores import METRIC_NAMES
from eval.reporting.verdicts import deviations, why_not_comparable
from eval.scoring.vqa import RULES
from pipeline.config import load_recipe

CONTENT = yaml.safe_load(PAPER_FILE.read_text())
RECIPES = Path("pipeline/recipes")
Percent = Annotated[float, Field(gt=0, le=200)]


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    vision: Literal["vit_l", "vit_g"]
    language: Literal["opt_2.7b", "opt_6.7b", "t5_xl", "t5_xxl"] | None = None
    evaluation: dict[str, int] = {}
    values: dict[str, Percent | dict[str, Percent]]


class PaperTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    task: Literal["captioning", "nocaps", "vqa", "okvqa", "gqa", "retrieval"]
    table: int = Field(ge=2, le=6)
    data: str | list[str]
    setting: str
    tuned_on: Literal["captions", "questions", "retrieval"] | None = None
    itg: Literal[False] | None = None
    hidden: Literal[True] | None = None
    decimals: Literal[2] | None = None
    asks: Literal[True] | None = None
    protocol: str
    evaluation: dict[str, Any]
    rows: list[dict[str, Any]] = Field(min_length=1)


def test_every_table_has_its_fields_and_every_row_known_names() -> None:
    assert CONTENT.keys() == {"source", "towers", "tables"}
    for table in map(PaperTable.model_validate, CONTENT["tables"]):
        assert table.setting.startswith("fine-tuned" if table.tuned_on else "zero-shot")
        assert "image_size_px" in table.evaluation and table.evaluation["image_size_px"] in (224, 364, 490)
        for content in table.rows:
            known = {name: content[name] for name in ("vision", "language", "evaluation") if name in content}
            row = Row.model_validate(known | {"values": {k: v for k, v in content.items() if k not in known}})
            assert (row.language is None) == (table.task == "retrieval") and row.values
            assert row.values.keys() <= METRIC_NAMES.keys() and row.evaluation.keys() <= table.evaluation.keys()
    assert {table["protocol"] for table in CONTENT["tables"]} <= {
        *RULES["vqa"], *RULES["okvqa"], "gqa/lavis", "captions/pycocoevalcap-1.2", "nocaps/idf-all", "ret/k128/itm+itc",
    }  # fmt: skip
    assert {table["table"] for table in CONTENT["tables"]} == {2, 3, 4, 5, 6}


def tuned(name: str, task: str, data: str, edits: list[str] | None = None, **more: Any) -> Evaluation:
    """An evaluation of weights of this shipped recipe, as the paper predicted."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", edits or []).model_dump(mode="json")
    language = recipe["language"]["name"] if recipe["language"] else None
    content = {
        "task": task, "data_set": data, "is_published_set": True, "image_source": "own", "limit": "all",
        "vision": recipe["vision"]["name"], "language": language, "image_size_px": recipe["vision"]["image_size_px"],
        "recipe": recipe, **more,
    }  # fmt: skip
    return Evaluation(Path("x"), content, {"metrics": [{"protocol": each["protocol"]} for each in CONTENT["tables"]]})


CAPTIONS = {"prompt": "a photo of", "num_beams": 5, "max_new_tokens": 30, "min_new_tokens": 4, "length_penalty": 1.0}
RANKS = {"k_test": 128}
ANSWERS = {"prompt": "Question: {} Answer:", "num_beams": 5}
FROZEN = ["vision.trained=false", "vision.activation_checkpointing=false", "optimizer.layer_decay=1"]
WITHOUT_ITG = ["objectives.itg_weight=0"]
VAL = "COCO Karpathy test"


def found(evaluation: Evaluation) -> tuple[PaperRow, list[str]]:
    row = paper_row(evaluation)
    assert row is not None
    return row, why_not_comparable(evaluation, row)


@pytest.mark.parametrize(
    ("evaluation", "table", "value"),
    [
        (tuned("finetune_caption_opt2.7b", "captioning", VAL, **CAPTIONS), 3, {"cider": 145.8, "bleu_4": 43.7}),
        (tuned("finetune_caption_opt6.7b", "captioning", VAL, **CAPTIONS), 3, {"cider": 145.2, "bleu_4": 43.5}),
        (
            tuned("finetune_caption_flant5xl", "captioning", VAL, **CAPTIONS | {"min_new_tokens": 8}),
            3,
            {"cider": 144.5, "bleu_4": 42.4},
        ),
        (tuned("finetune_retrieval_vitl", "retrieval", VAL, **RANKS), 5, {"tr_at_1": 83.5, "ir_at_10": 91.8}),
        (tuned("finetune_retrieval_vitg", "retrieval", VAL, **RANKS), 5, {"tr_at_1": 85.4, "ir_at_1": 68.3}),
        (tuned("finetune_retrieval_vitg", "retrieval", "Flickr30K test", **RANKS), 5, {"tr_at_1": 97.6}),
        (
            tuned("finetune_retrieval_vitg", "retrieval", VAL, WITHOUT_ITG, **RANKS),
            6,
            {"tr_at_1": 84.5, "tr_at_5": 96.2, "ir_at_1": 67.2, "ir_at_5": 87.1, "tr_at_10": None},
        ),
    ],
    ids=lambda value: str(value)[:12] if not isinstance(value, Evaluation) else "",
)
def test_a_fine_tuned_run_stands_beside_its_row(evaluation: Evaluation, table: int, value: dict[str, float]) -> None:
    row, reasons = found(evaluation)
    assert (row.table, reasons) == (table, [])
    assert {name: row.value(name, "overall") for name in value} == value
    assert deviations(evaluation, row) == []


@pytest.mark.parametrize("data", ["VQAv2 test", "VQAv2 test-dev"])
def test_table_4_has_test_dev_and_test_std(data: str) -> None:
    for name, printed in (("flant5xl", (81.55, 81.66)), ("opt2.7b", (81.59, 81.74)), ("opt6.7b", (82.19, 82.3))):
        evaluation = tuned(f"finetune_vqa_{name}", "vqa", data, **ANSWERS)
        row, reasons = found(evaluation)
        assert (row.table, reasons, deviations(evaluation, row)) == (4, [], [])
        assert (row.value("accuracy", "test-dev"), row.value("accuracy", "test-std")) == printed


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        (
            tuned("finetune_caption_opt2.7b", "captioning", VAL, **CAPTIONS | {"min_new_tokens": 8}),
            "min_new_tokens 8, the paper has 4",
        ),
        (
            tuned("finetune_vqa_opt2.7b", "vqa", "VQAv2 test", ["language.precision=int8"], **ANSWERS),
            "the language model was in int8",
        ),
        (
            tuned("finetune_caption_opt2.7b", "captioning", VAL, FROZEN, **CAPTIONS),
            "the image encoder was frozen; the paper's was trained",
        ),
        (
            tuned("finetune_vqa_opt2.7b", "captioning", VAL, **CAPTIONS),
            "these weights are fine-tuned on questions; the paper's are fine-tuned on captions",
        ),
        (
            tuned("finetune_vqa_opt2.7b", "gqa", "GQA test-dev", **ANSWERS),
            "these weights are fine-tuned on questions; the paper's number is zero-shot",
        ),
        (
            tuned("finetune_retrieval_vitl", "retrieval", VAL, WITHOUT_ITG, **RANKS),
            "these weights have other towers",
        ),
        (
            tuned("finetune_retrieval_vitg", "retrieval", "Flickr30K test", WITHOUT_ITG, **RANKS),
            "these weights were fine-tuned without ITG; the paper's with it",
        ),
        (tuned("stage1_vitg", "retrieval", VAL, **RANKS), "these weights are pre-trained"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_another_fine_tuning_is_another_number(evaluation: Evaluation, reason: str) -> None:
    assert any(each.startswith(reason) for each in found(evaluation)[1])


def test_a_changed_recipe_is_told_apart_from_the_tables_own_change() -> None:
    evaluation = tuned("finetune_retrieval_vitg", "retrieval", VAL, [*WITHOUT_ITG, "optimizer.layer_decay=1"], **RANKS)
    assert deviations(evaluation, found(evaluation)[0]) == ["optimizer.layer_decay 1.0, shipped 0.95"]
    evaluation = tuned("finetune_vqa_opt2.7b", "vqa", "VQAv2 test", ["init_text_weights=elsewhere"], **ANSWERS)
    assert deviations(evaluation, found(evaluation)[0]) == []
