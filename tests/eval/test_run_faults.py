"""What stops the prediction command in one line: pictures, weights and folders that are not what they should be."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from eval.run import main
from eval.tasks.task_folder import TaskFolder
from tests.eval.test_run import SHORT, Folders, lines, run
from tests.support.gloo_ranks import run_on_ranks


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_a_picture_replaced_at_its_path_never_gives_old_predictions(
    task: str, checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, more = (checkpoints["stage1"], ()) if task == "retrieval" else (checkpoints["t5"], SHORT)
    shutil.copytree(sets["coco"], tmp_path / "coco")
    data, out = tmp_path / "coco", tmp_path / "out"
    assert run(weights, task, data, out, *more) == 0 and run(weights, task, data, out, *more) == 0
    picture, other = data / "images/val2014/0005.jpg", data / "images/val2014/0006.jpg"
    kept, times = picture.read_bytes(), picture.stat()
    data = data.rename(tmp_path / "moved")  # where pictures lie does not matter
    assert run(weights, task, data, out, *more) == 0
    picture = data / "images/val2014/0005.jpg"
    assert str(picture) in {place for _, place, *_ in json.loads((out / "task.json").read_text())["images"]}
    picture.write_bytes(kept)  # a new file, as far as its time tells
    for finished in (True, False):
        if not finished:
            (out / "COMPLETE").unlink()
        capsys.readouterr()
        assert run(weights, task, data, out, *more) == 1
        error = capsys.readouterr().err
        assert f"another picture of image 1005: {picture} has changed" in error and error.count("\n") == 1
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(weights, task, data, out, *more) == 0
    picture.write_bytes((data / "images/val2014" / other.name).read_bytes())  # another size in the old one's time
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(weights, task, data, out, *more) == 1


def test_a_picture_replaced_while_it_is_predicted_is_named(
    checkpoints: Folders, sets: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models.inference import LanguageModel

    shutil.copytree(sets["coco"], tmp_path / "coco")
    original = LanguageModel.generate

    def replaces(self: Any, *arguments: Any) -> Any:
        (tmp_path / "coco/images/val2014/0005.jpg").touch()
        return original(self, *arguments)

    monkeypatch.setattr(LanguageModel, "generate", replaces)
    assert run(checkpoints["t5"], "captioning", tmp_path / "coco", tmp_path / "out", *SHORT) == 1
    assert not (tmp_path / "out" / "COMPLETE").exists() and not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize(
    ("weights", "task", "data", "more", "message"),
    [
        ("stage1", "vqa", "vqav2", (), "weights of stage 1; --task vqa needs weights of stage 2"),
        ("t5", "retrieval", "coco", (), "weights of stage 2; --task retrieval needs weights of stage 1"),
        ("nowhere", "vqa", "vqav2", (), "has no trainable.safetensors"),
        ("t5", "vqa", "coco", (), "no v2_OpenEnded_mscoco_val2014_questions.json"),
        ("t5", "captioning", "coco", ("--split", "val"), "no image of split 'val'; it has test, train"),
        ("t5", "vqa", "vqav2", ("--prompt", "what?"), "needs one {} where the question goes"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    weights: str, task: str, data: str, more: tuple[str, ...], message: str,
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = checkpoints.get(weights, tmp_path / weights)
    assert run(path, task, sets[data], tmp_path / "out", *more) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_damaged_picture_or_weights_file_is_named(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "coco"
    shutil.copytree(sets["coco"], data)
    (data / "images/val2014/0005.jpg").write_bytes(b"not a picture")
    assert run(checkpoints["t5"], "captioning", data, tmp_path / "a", *SHORT) == 1
    error = capsys.readouterr().err
    assert "image 1005" in error and "0005.jpg" in error and error.count("\n") == 1
    weights = tmp_path / "run"
    shutil.copytree(checkpoints["t5"], weights)
    file = weights / "checkpoints/step_00000004/trainable.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert run(weights, "captioning", sets["coco"], tmp_path / "b", *SHORT) == 1
    error = capsys.readouterr().err
    assert "trainable.safetensors" in error and error.count("\n") == 1


def test_a_picture_name_that_leads_out_of_the_folder_is_refused(
    checkpoints: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"cocoid": 1, "filepath": "../..", "filename": "secret.jpg", "split": "test", "sentences": [{"raw": "a"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [entry]}))
    assert run(checkpoints["t5"], "captioning", tmp_path, tmp_path / "out") == 1
    assert "is outside the data folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"images": 5}', '{"images": [null]}', '{"images": [[1]]}'])
def test_a_task_that_eval_run_did_not_write_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"task\.json: is not a task\.json of eval\.run \(.+\); remove .+ to start again"
    ):
        TaskFolder(tmp_path).adopt({"task": "vqa"})


def test_an_answer_that_is_no_text_is_named_before_it_is_official(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], out) == 0
    log = out / "predictions.rank0.jsonl"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps(json.loads(first) | {"text": 5}), *others]) + "\n")
    for name in ("COMPLETE", "predictions.json"):
        (out / name).unlink()
    assert run(checkpoints["opt"], "vqa", sets["vqav2"], out) == 1
    assert f"text 5 of id {json.loads(first)['id']} is a int, expected str" in capsys.readouterr().err
    assert not (out / "predictions.json").exists()


def said_on_rank(command: list[str]) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(command)
    return code, errors.getvalue()


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_a_damaged_picture_ends_every_rank_in_one_line(
    task: str, checkpoints: Folders, sets: Folders, tmp_path: Path
) -> None:
    data = tmp_path / "coco"
    shutil.copytree(sets["coco"], data)
    (data / "images/val2014/0005.jpg").write_bytes(b"not a picture")
    weights = checkpoints["stage1" if task == "retrieval" else "t5"]
    command = ["--weights", weights, "--task", task, "--data", data, "--output", tmp_path / "out", "--batch-size", 2]
    said = run_on_ranks(2, said_on_rank, [str(part) for part in command])
    assert [code for code, _ in said] == [1, 1]
    assert all(text.count("\n") == 1 for _, text in said), said
    assert sum("image 1005" in text and "0005.jpg" in text for _, text in said) == 1
    assert sum("failed; see its output" in text for _, text in said) == 1


def counted_on_rank(command: list[str]) -> tuple[int, str, int]:
    """Also how many batches this rank has begun. Rank 0 cannot read its first picture; rank 1 takes its time."""
    from pipeline.data import transforms
    from pipeline.models.inference import LanguageModel, RetrievalModel

    slow, begun = os.environ["RANK"] == "1", []

    def read(path: Path, size_px: int) -> Any:
        if slow:
            return load(path, size_px)
        raise ValueError(f"{path}: is not a picture")

    def waiting(work: Any) -> Any:
        def worked(*arguments: Any, **options: Any) -> Any:
            begun.append(1)
            time.sleep(0.5)
            return work(*arguments, **options)

        return worked

    load = transforms.load_evaluation_pixels
    with (
        mock.patch.object(transforms, "load_evaluation_pixels", read),
        mock.patch.object(LanguageModel, "generate", waiting(LanguageModel.generate)),
        mock.patch.object(RetrievalModel, "encode_images", waiting(RetrievalModel.encode_images)),
    ):
        return *said_on_rank(command), len(begun)


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_no_rank_goes_on_for_long_after_another_has_failed(
    task: str, checkpoints: Folders, sets: Folders, tmp_path: Path
) -> None:
    weights = checkpoints["stage1" if task == "retrieval" else "t5"]
    command = ["--weights", weights, "--task", task, "--data", sets["coco"], "--output", tmp_path, "--batch-size", 1]
    failed, told = run_on_ranks(2, counted_on_rank, [str(part) for part in command])
    assert (failed[0], told[0]) == (1, 1)
    assert "is not a picture" in failed[1] and "rank 0 failed; see its output" in told[1]
    assert told[2] <= 2  # of four or more


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_a_repaired_picture_costs_no_finished_prediction(
    task: str, checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "coco", tmp_path / "out"
    weights, more = (checkpoints["stage1"], ()) if task == "retrieval" else (checkpoints["t5"], SHORT)
    shutil.copytree(sets["coco"], data)
    assert run(weights, task, data, tmp_path / "whole", *more, "--batch-size", 2) == 0
    last = data / "images/val2014/0010.jpg"
    whole = last.read_bytes()
    last.write_bytes(whole[:100])
    assert run(weights, task, data, out, *more, "--batch-size", 2) == 1
    before = [each for path in out.glob("predictions.rank*.jsonl") for each in lines(path)]
    assert bool(before) == (task == "captioning")  # retrieval embeds all pictures first
    last.write_bytes(whole)
    assert run(weights, task, data, out, *more, "--batch-size", 2) == 0
    after = [each for path in out.glob("predictions.rank*.jsonl") for each in lines(path)]
    assert after[: len(before)] == before and len(after) == 9
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    capsys.readouterr()
    last.write_bytes(whole)  # now there is a prediction of it
    assert run(weights, task, data, out, *more, "--batch-size", 2) == 1
    assert "another picture of image 1010" in capsys.readouterr().err


HOLDS = """
import sys, time
from pathlib import Path
from eval.tasks.predictions import PredictionLog
with PredictionLog(Path(sys.argv[1]), 1):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_nothing_begins_while_a_rank_of_an_earlier_job_lives(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 1 outlived rank 0, say: it would go on predicting what the next job, of one rank, predicts too."""
    out = tmp_path / "out"
    assert run(checkpoints["t5"], "captioning", sets["coco"], out, *SHORT) == 0
    for path in (*out.glob("predictions*"), out / "COMPLETE"):
        path.unlink()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True) as orphan:
        try:
            assert orphan.stdout is not None and orphan.stdout.readline() == "holds\n"
            assert run(checkpoints["t5"], "captioning", sets["coco"], out, *SHORT) == 1
            error = capsys.readouterr().err
            assert "predictions.rank1.jsonl: another process is writing it" in error and error.count("\n") == 1
        finally:
            orphan.kill()
    assert run(checkpoints["t5"], "captioning", sets["coco"], out, *SHORT) == 0
