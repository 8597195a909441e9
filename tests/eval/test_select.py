"""Choosing a checkpoint by its validation scores, and keeping it while the training goes on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eval.report import main as report
from eval.run import main as predict
from eval.score import main as score
from eval.select import main
from pipeline.config import parse_recipe
from pipeline.files import sha256_of
from pipeline.models.build import build_bridge
from pipeline.training import checkpoint
from pipeline.weights.native import save_weights
from tests.support.random_bridges import randomise
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe

WEIGHTS = "trainable.safetensors"


class Run:
    """A run folder with checkpoints, and the folder of their scores, as eval.watch leaves them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scores = folder / "captioner", folder / "eval" / "captioner"

    def checkpoint(self, step: int) -> Path:
        place = self.folder / "checkpoints" / f"step_{step:08}"
        place.mkdir(parents=True, exist_ok=True)
        (place / WEIGHTS).write_bytes(f"weights of {step}".encode())
        (place / "COMPLETE").touch()
        return place

    def scored(
        self, step: int, name: str = "coco", task: str = "captioning", more: Any = None, **values: float
    ) -> Path:
        """Scores of a checkpoint; `more` are changes to task.json."""
        place = self.checkpoint(step)
        folder = self.scores / place.name / name
        folder.mkdir(parents=True)
        settings = {
            "task": task, "images": [], "image_source": "own", "data": "coco", "annotations": "a.json", "limit": "all",
            "annotations_sha256": "cd" * 32, "weights_sha256": sha256_of(place / WEIGHTS), "split": "val",
            "data_set": "COCO Karpathy val", "image_size_px": 364,
        }  # fmt: skip
        (folder / "task.json").write_text(json.dumps(settings | (more or {})))
        protocol = {"captioning": "captions/pycocoevalcap-1.2", "vqa": "vqa/official-2021"}.get(
            task, "ret/k128/itm+itc"
        )
        rows = [{"name": name, "protocol": protocol, "subset": "overall", "value": value, "low": None, "high": None}
                for name, value in values.items()]  # fmt: skip
        scored_as = "captions" if task == "captioning" else task
        (folder / "metrics.json").write_text(json.dumps({"task": scored_as, "n": 5000, "metrics": rows}))
        return folder

    def select(self, metric: str, *more: object) -> int:
        return main([str(self.folder), "--metric", metric, *map(str, more)])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_the_best_by_each_metric_is_named_and_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step, cider, bleu in ((1, 140.0, 40.0), (2, 139.0, 42.0), (3, 138.0, 41.0)):
        run.scored(step, cider=cider, bleu_4=bleu)
    for metric, step in (("cider", 1), ("cider+bleu4", 2), ("cider", 1)):
        assert run.select(metric) == 0
        assert last_line(capsys) == str(run.folder / f"checkpoints/step_{step:08}")
        assert (run.folder / "selected" / WEIGHTS).read_bytes() == f"weights of {step}".encode()
        said = json.loads((run.folder / "selected/selection.json").read_text())
        assert (said["metric"], said["step"]) == (metric, f"step_{step:08}")
        assert said["weights_sha256"] == sha256_of(run.folder / "selected" / WEIGHTS)
    assert {path.name for path in (run.folder / "selected").iterdir()} == {WEIGHTS, "selection.json"}


@pytest.mark.parametrize(
    ("metric", "task", "worse", "better"),
    [
        ("mean_recall", "retrieval", {"mean_recall": 80.0, "tr_mean": 95.0}, {"mean_recall": 81.0, "tr_mean": 90.0}),
        ("tr_mean", "retrieval", {"mean_recall": 81.0, "tr_mean": 90.0}, {"mean_recall": 80.0, "tr_mean": 95.0}),
        ("vqa", "vqa", {"accuracy": 60.0}, {"accuracy": 60.1}),
    ],
)
def test_retrieval_and_questions(
    metric: str, task: str, worse: Any, better: Any, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, values in ((1, worse), (2, better), (3, worse)):
        run.scored(step, "x", task, **values)
    assert run.select(metric) == 0 and last_line(capsys).endswith("step_00000002")


def test_questions_of_ones_own_choose_too(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step, accuracy in ((1, 50.0), (2, 75.0), (3, 62.5)):
        folder = run.scored(step, "mine", "vqa", {"data_set": "mine.jsonl", "data": "mine.jsonl"}, accuracy=accuracy)
        scores = (folder / "metrics.json").read_text()
        (folder / "metrics.json").write_text(scores.replace("vqa/official-2021", "own/normalised"))
    assert run.select("vqa") == 1
    assert run.select("own_answers") == 0 and last_line(capsys).endswith("step_00000002")


def test_of_equal_scores_the_earlier_is_taken_unless_the_later_is_asked_for(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, cider in ((1, 139.0), (2, 140.0), (3, 140.0)):
        run.scored(step, cider=cider)
    assert run.select("cider") == 0 and last_line(capsys).endswith("step_00000002")
    assert run.select("cider", "--ties", "later") == 0 and last_line(capsys).endswith("step_00000003")


def test_checkpoints_without_scores_and_scores_without_checkpoints_are_named(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, cider in ((1, 141.0), (2, 139.0), (3, 140.0)):
        run.scored(step, cider=cider)
    (run.folder / "checkpoints/step_00000001/COMPLETE").unlink()
    run.checkpoint(4)
    assert run.select("cider") == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].endswith("step_00000003") and "step_00000001 141.0000" in said.out
    assert "(the checkpoint is gone)" in said.out and "step_00000004 is not scored yet, and not compared" in said.out


def faults(name: str, run: Run) -> str:
    """Make this fault; returns what the one line must say."""
    if name == "no scores":
        run.checkpoint(1)
        return "no step_*/*/metrics.json in it"
    first = run.scored(1, cider=1.0)
    if name == "no such metric":
        return "has no such score, only cider"
    if name == "test":
        for file in (first / "task.json", run.scored(2, cider=1.0) / "task.json"):
            file.write_text(file.read_text().replace('"split": "val"', '"split": "test"'))
        return f"{first}: scores of split 'test'"
    if name == "settings":
        second = run.scored(2, cider=1.0, more={"num_beams": 1})
        return f"{second}: num_beams 1, but None in {first}"
    if name == "two evaluations":
        run.scored(1, "flickr", cider=1.0)
        return "coco, flickr all have it; choose one with --evaluation coco"
    if name == "other weights":
        (run.folder / "checkpoints/step_00000001" / WEIGHTS).write_bytes(b"other")
        return f"{first}: scores of other weights"
    if name == "other predictions":
        (first / "predictions.json").write_text("[]")
        metrics = json.loads((first / "metrics.json").read_text())
        (first / "metrics.json").write_text(json.dumps(metrics | {"predictions_sha256": "ab"}))
        return "these are not the scores of predictions.json beside it"
    if name == "gone":
        (run.folder / "checkpoints/step_00000001/COMPLETE").unlink()
        run.checkpoint(9)
        return "none of the 1 scored checkpoints is there now, the last was step_00000001"
    (run.folder / "checkpoints/step_00000001/COMPLETE").unlink()
    return "has no whole checkpoint"


def test_scores_on_questions_of_the_training_choose_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    recipe: dict[str, Any] = {"stage": 2, "vision": {"name": "v"}, "data": {"sample": "question"}}
    for sets, code in (({"vqav2_train2014": 9}, 0), ({"vqav2_train2014": 9, "vqav2_val2014": 4}, 1)):
        manifest = tiny_manifest(run.folder.parent / str(code), 3)
        content = json.loads(manifest.read_text())
        content["shards"][0] |= {"provenance": {"question_sets": sets}}
        manifest.write_text(json.dumps(content))
        of_val = {"data_set": "VQAv2 val", "is_of_published_set": True}
        seen = recipe | {"data": recipe["data"] | {"manifest": str(manifest)}}
        folder = run.scored(1, f"vqa{code}", "vqa", of_val | {"recipe": seen}, accuracy=80.0)
        assert run.select("vqa", "--evaluation", folder.name) == code
    assert f"{folder}: scores on questions of the training (vqav2_val2014)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("no scores", "no such metric", "test", "settings", "two evaluations", "other weights", "other predictions"),
        *("gone", "no checkpoint"),
    ],
)
def test_what_cannot_be_compared_is_one_line(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    said = faults(name, run)
    assert run.select("vqa" if name == "no such metric" else "cider") == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and error.startswith("error: ")
    assert not (run.folder / "selected").exists()


def test_an_evaluation_on_the_test_split_beside_it_does_not_count(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for step, value in ((1, 140.0), (2, 141.0)):
        run.scored(step, cider=value)
        run.scored(step, "test", cider=300 - value, more={"split": "test"})
    assert run.select("cider") == 0 and last_line(capsys).endswith("step_00000002")
    assert run.select("cider", "--evaluation", "test") == 1
    assert "scores of split 'test'" in capsys.readouterr().err


def validation_split(coco: Path, folder: Path) -> Path:
    """A COCO folder whose test split is called val."""
    folder.mkdir()
    (folder / "images").symlink_to(coco / "images")
    annotations = (coco / "dataset_coco.json").read_text()
    (folder / "dataset_coco.json").write_text(annotations.replace('"split": "test"', '"split": "val"'))
    return folder


def evaluate(weights: Path, task: str, data: Path, folder: Path) -> None:
    """As the watch list asks for it: `--split val` for both commands."""
    short = ["--max-new-tokens", "4", "--min-new-tokens", "1"] if task == "captioning" else ["--k-test", "4"]
    flags = ["--weights", weights, "--task", task, "--data", data, "--split", "val", "--output", folder, *short]
    assert predict(list(map(str, flags))) == 0
    how: list[object] = ["retrieval", "--predictions", folder / "scores.npz"]
    if task == "captioning":
        how = ["captions", "--predictions", folder / "predictions.json", "--split", "val"]
        how += ["--annotations", data / "dataset_coco.json"]
    assert score([*map(str, how), "--output", str(folder / "metrics.json")]) == 0


@pytest.mark.parametrize(("task", "metric"), [("captioning", "cider"), ("retrieval", "mean_recall")])
def test_a_fine_tuned_run_is_evaluated_on_the_validation_split_and_its_best_outlives_its_checkpoint(
    task: str, metric: str, sets: dict[str, Path], tmp_path: Path
) -> None:
    """Real weights with their encoder, real predictions and scores, and the training's own removal of checkpoints."""
    data, folder = validation_split(sets["coco"], tmp_path / "coco"), tmp_path / "tuned"
    kind = (2, "t5") if task == "captioning" else (1, None)
    content: dict[str, Any] = tiny_recipe(tmp_path / "towers", tmp_path / "m.json", folder, *kind)
    content["vision"] |= {"trained": True}
    content["data"] |= {"sample": "caption"}
    content["run"] |= {"keep_checkpoints": 1}
    recipe = parse_recipe(content)
    for step in (4, 8, 12):
        place = folder / "checkpoints" / f"step_{step:08}"
        place.mkdir(parents=True)
        save_weights(randomise(build_bridge(recipe), seed=step).float(), recipe, step, place)
        digests = dict.fromkeys((WEIGHTS, checkpoint.OPTIMIZER), "")
        state = checkpoint.State(step, step, 0, 1, "", {}, {}, digests)
        (place / "state.json").write_text(json.dumps(asdict(state)))
        (place / "COMPLETE").touch()
        evaluate(place, task, data, tmp_path / "eval" / "tuned" / place.name / "val")
    assert main([str(folder), "--metric", metric]) == 0
    said = json.loads((folder / "selected/selection.json").read_text())
    assert len(said["values"]) == 3 and said["values"][said["step"]] == max(said["values"].values())
    best = folder / "checkpoints" / said["step"]
    wanted = sha256_of(best / WEIGHTS)
    assert (folder / "selected" / WEIGHTS).samefile(best / WEIGHTS), "a second name costs no disk"
    checkpoint._remove_old(folder, recipe)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000012"]
    assert sha256_of(folder / "selected" / WEIGHTS) == wanted
    evaluate(folder / "selected", task, data, tmp_path / "again")
    assert report([str(tmp_path / "again"), "--output", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text()
    assert f"chosen by {metric} on COCO Karpathy val, {said['step']}" in text and "Seen in training" in text
