"""The prediction command on tiny random checkpoints: official files, resumption, ablations, ranks, clear refusals."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.run import main
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_evaluation_sets import save_karpathy

Folders = dict[str, Path]


def run(weights: Path, task: str, data: Path, output: Path, *more: object) -> int:
    flags = ("--weights", weights, "--task", task, "--data", data, "--output", output, *more)
    return main([str(flag) for flag in flags])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SHORT = ("--min-new-tokens", 1, "--max-new-tokens", 4, "--batch-size", 4)


def test_captions_of_the_split_in_the_official_format(checkpoints: Folders, sets: Folders, tmp_path: Path) -> None:
    assert run(checkpoints["t5"], "captioning", sets["coco"], tmp_path / "out", *SHORT) == 0
    official = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [each["image_id"] for each in official] == list(range(1002, 1011))
    assert {type(each["caption"]) for each in official} == {str}
    assert (tmp_path / "out" / "COMPLETE").is_file()
    task = json.loads((tmp_path / "out" / "task.json").read_text())
    assert task["prompt"] == "a photo of" and len(task["images"]) == 9 and len(task["weights_sha256"]) == 64


@pytest.mark.parametrize(("language", "prompt"), [("t5", "Short answer"), ("opt", "Question: {} Answer:")])
def test_answers_to_every_question_with_the_papers_prompt(
    language: str, prompt: str, checkpoints: Folders, sets: Folders, tmp_path: Path
) -> None:
    assert run(checkpoints[language], "vqa", sets["vqav2"], tmp_path / "out", "--batch-size", 4) == 0
    official = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [each["question_id"] for each in official] == [10 * n + q for n in range(1, 6) for q in (0, 1)]
    assert prompt in json.loads((tmp_path / "out" / "task.json").read_text())["prompt"]


def test_weights_whose_towers_have_moved_continue_with_their_new_places(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    towers, asked = checkpoints["opt"].parent / "towers", ("captioning", sets["coco"], tmp_path / "out", *SHORT)
    assert run(checkpoints["opt"], *asked) == 0
    before = (tmp_path / "out" / "predictions.json").read_bytes()
    shutil.copytree(towers / "opt", tmp_path / "elsewhere")
    places = ("--set", f"language.name={tmp_path / 'elsewhere'}")
    assert run(checkpoints["opt"], *asked, *places) == 0
    assert "already complete" in capsys.readouterr().out
    assert run(checkpoints["opt"], "captioning", sets["coco"], tmp_path / "new", *SHORT, *places) == 0
    assert (tmp_path / "new" / "predictions.json").read_bytes() == before
    assert json.loads((tmp_path / "new" / "task.json").read_text())["language"] == str(tmp_path / "elsewhere")
    assert run(checkpoints["opt"], *asked, "--set", "vision.precision=bf16") == 1
    assert "of which only places and the language model's precision" in capsys.readouterr().err


def test_a_language_model_in_int8_is_another_in_task_json(
    checkpoints: Folders, sets: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("captioning", sets["coco"], tmp_path / "out", *SHORT, "--limit", 3)
    assert run(checkpoints["opt"], *asked, "--set", "language.precision=int8") == 0
    task = json.loads((tmp_path / "out" / "task.json").read_text())
    assert task["recipe"]["language"]["precision"] == "int8"
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 3
    assert run(checkpoints["opt"], *asked) == 1
    assert "it holds predictions with towers" in capsys.readouterr().err


def test_nocaps_then_its_score(checkpoints: Folders, sets: Folders, tmp_path: Path) -> None:
    from eval.score import main as score

    assert run(checkpoints["opt"], "nocaps", sets["nocaps"], tmp_path / "out", "--split", "val", *SHORT) == 0
    annotations = sets["nocaps"] / "nocaps_val_4500_captions.json"
    files = ("--predictions", tmp_path / "out" / "predictions.json", "--annotations", annotations)
    assert score(["nocaps", *map(str, files), "--output", str(tmp_path / "metrics.json")]) == 0


def test_answers_do_not_depend_on_the_batch(checkpoints: Folders, sets: Folders, tmp_path: Path) -> None:
    for size in (1, 7):
        assert run(checkpoints["opt"], "vqa", sets["vqav2"], tmp_path / f"{size}", "--batch-size", size) == 0
    assert (tmp_path / "1/predictions.json").read_bytes() == (tmp_path / "7/predictions.json").read_bytes()


def test_a_batch_has_each_picture_once_in_whatever_order_the_file_asks(
    checkpoints: Folders, sets: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models.inference import LanguageModel

    data = tmp_path / "vqav2"
    shutil.copytree(sets["vqav2"], data)
    file = data / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(file.read_text())
    content["questions"] = content["questions"][::2] + content["questions"][1::2]  # each picture's two are apart
    file.write_text(json.dumps(content))
    order = [each["question_id"] for each in content["questions"]]
    encoded: list[int] = []
    shown: list[torch.Tensor] = []
    original = LanguageModel.generate

    def counts(self: Any, pixels: Any, prompts: Any, decoding: Any, picture_of: Any, questions: Any) -> Any:
        encoded.append(len(pixels))
        shown.extend(pixels[picture_of])
        return original(self, pixels, prompts, decoding, picture_of, questions)

    monkeypatch.setattr(LanguageModel, "generate", counts)
    answers, pictures = {}, {}
    for size in (1, 4):
        encoded.clear()
        shown.clear()
        assert run(checkpoints["t5"], "vqa", data, tmp_path / f"{size}", "--batch-size", size) == 0
        official = json.loads((tmp_path / f"{size}" / "predictions.json").read_text())
        assert [each["question_id"] for each in official] == order
        answers[size], pictures[size] = official, torch.stack(shown)
    assert encoded == [2, 2, 1] and answers[1] == answers[4]
    assert torch.equal(pictures[1], pictures[4])  # each question with its own
    assert len(pictures[1].unique(dim=0)) == 5


def test_retrieval_scores_equal_those_of_every_pair_scored_alone(
    checkpoints: Folders, sets: Folders, tmp_path: Path
) -> None:
    from pipeline.data.transforms import load_evaluation_pixels
    from pipeline.models.inference import RetrievalModel
    from pipeline.weights.native import load_model

    out = tmp_path / "out"
    assert run(checkpoints["stage1"], "retrieval", sets["flickr30k"], out, "--k-test", 3, "--batch-size", 4) == 0
    scores = np.load(out / "scores.npz")
    model = load_model(checkpoints["stage1"], "cpu")
    assert isinstance(model, RetrievalModel)
    entries = [
        each for each in json.loads((sets["flickr30k"] / "dataset_flickr30k.json").read_text())["images"]
        if each["split"] == "test"
    ]  # fmt: skip
    assert scores["image_ids"].tolist() == [each["imgid"] for each in entries]
    texts = [each["raw"].lower().replace(".", "") for entry in entries for each in entry["sentences"]]
    assert scores["text_image"].tolist() == [row for row in range(9) for _ in range(2)]
    matched = np.zeros((9, 18), dtype=bool)
    for row, entry in enumerate(entries):
        path = sets["flickr30k"] / "images" / entry["filename"]
        frozen = model.encode_images(load_evaluation_pixels(path, model.image_size_px)[None])
        for column, text in enumerate(texts):
            cosine = (model.embed_images(frozen)[0] @ model.embed_texts(model.tokenise([text]))[0]).max()
            assert scores["itc"][row, column] == pytest.approx(float(cosine), abs=1e-5)
            if not np.isnan(scores["itm"][row, column]):
                matched[row, column] = True
                logit = float(model.match_logits(frozen[0], [model.tokenise([text])])[0])
                assert scores["itm"][row, column] == pytest.approx(logit, abs=1e-4)
    for row in range(9):
        assert matched[row, np.argsort(-scores["itc"][row], kind="stable")[:3]].all()
    for column in range(18):
        assert matched[np.argsort(-scores["itc"][:, column], kind="stable")[:3], column].all()
    assert matched.sum() < 9 * 18
    assert not (out / "work").exists()


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_a_killed_run_goes_on_and_repeats_nothing(
    task: str, checkpoints: Folders, sets: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models.inference import LanguageModel, RetrievalModel

    weights, more = (checkpoints["stage1"], ("--batch-size", 2)) if task == "retrieval" else (checkpoints["t5"], SHORT)
    assert run(weights, task, sets["coco"], tmp_path / "whole", *more) == 0
    reference = (tmp_path / "whole" / "predictions.jsonl").read_bytes()

    calls: list[int] = []
    worker, name = (RetrievalModel, "match_logits") if task == "retrieval" else (LanguageModel, "generate")
    original = getattr(worker, name)

    def dies(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(worker, name, dies)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(weights, task, sets["coco"], out, *more)
    log = out / "predictions.rank0.jsonl"
    before = lines(log)
    assert 0 < len(before) < 9
    with log.open("a") as file:
        file.write('{"id": 1010, "text": "a line torn by')
    asked: list[int] = []

    def counts(self: Any, *arguments: Any) -> Any:
        asked.append(1 if task == "retrieval" else len(arguments[1]))
        return original(self, *arguments)

    monkeypatch.setattr(worker, name, counts)
    assert run(weights, task, sets["coco"], out, *more) == 0
    assert lines(log)[: len(before)] == before
    assert sum(asked) == 9 - len(before)
    assert (out / "predictions.jsonl").read_bytes() == reference


def test_killed_at_twenty_random_points_it_ends_with_the_same_bytes_and_repeats_nothing(
    checkpoints: Folders, tmp_path: Path
) -> None:
    """Real SIGKILLs, half-written lines, and at each start another number of ranks."""
    data, images = save_karpathy(tmp_path / "coco", 300), 300
    flags = ("--batch-size", 1, "--min-new-tokens", 3, "--max-new-tokens", 4)
    assert run(checkpoints["opt"], "captioning", data, tmp_path / "whole", *flags) == 0
    out = tmp_path / "killed"
    asked = ("--weights", checkpoints["opt"], "--task", "captioning", "--data", data, "--output", out, *flags)
    command = [sys.executable, "-m", "tests.support.eval_kill_loop", "20", "5", out, *asked]
    done = subprocess.run([str(each) for each in command], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    deaths = json.loads(done.stdout.splitlines()[-1])
    assert len(deaths) == 20 and deaths == sorted(deaths) and 20 < deaths[-1] < images, deaths
    assert len(set(deaths)) > 10
    for name in ("predictions.jsonl", "predictions.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    logged = [each["id"] for path in out.glob("predictions.rank*.jsonl") for each in lines(path)]
    assert len(logged) == len(set(logged)) == images  # what was finished was never generated again


def test_the_files_are_the_same_at_every_number_of_ranks(checkpoints: Folders, sets: Folders, tmp_path: Path) -> None:
    ranks = 3
    for count in (1, ranks):
        for task, weights in (("captioning", "t5"), ("retrieval", "stage1")):
            more = ("--batch-size", 2) if task == "retrieval" else SHORT
            flags = ["--weights", checkpoints[weights], "--task", task, "--data", sets["coco"], *more]
            command = [str(flag) for flag in [*flags, "--output", tmp_path / task / str(count)]]
            codes = [main(command)] if count == 1 else run_on_ranks(ranks, main, command)  # a group, and a port, each
            assert codes == [0] * count
    for task in ("captioning", "retrieval"):
        one, several = tmp_path / task / "1", tmp_path / task / str(ranks)
        assert (one / "predictions.jsonl").read_bytes() == (several / "predictions.jsonl").read_bytes()
        assert len(list(several.glob("predictions.rank*.jsonl"))) == ranks
    alone, together = (np.load(tmp_path / "retrieval" / str(count) / "scores.npz") for count in (1, ranks))
    assert all(np.array_equal(alone[name], together[name], equal_nan=name == "itm") for name in alone.files)


def test_ablations_show_no_picture_or_anothers(
    checkpoints: Folders, sets: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models.inference import LanguageModel

    seen: list[Any] = []

    def records(self: Any, pixels: Any, prompts: list[str], *_others: Any) -> list[str]:
        seen.append(pixels)
        return ["a"] * len(prompts)

    monkeypatch.setattr(LanguageModel, "generate", records)
    pixels = {}
    for images in ("own", "shuffled", "none"):
        seen.clear()
        assert run(checkpoints["t5"], "captioning", sets["coco"], tmp_path / images, "--images", images, *SHORT) == 0
        pixels[images] = list(seen)
    assert pixels["none"] == [None, None, None]
    own, shuffled = torch.cat(pixels["own"]).flatten(1), torch.cat(pixels["shuffled"]).flatten(1)
    same = (own[:, None] == shuffled[None]).all(dim=2)
    assert same.sum(dim=0).tolist() == same.sum(dim=1).tolist() == [1] * 9  # the same pictures,
    assert not same.diagonal().any()  # none in its own place
