"""`pipeline.generate`: what it reads, what it leaves out, its flags; and its conversation."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config import parse_recipe
from pipeline.convert import main as convert
from pipeline.files import LONGEST_LINE
from pipeline.generate import main
from pipeline.inputs import count_lines, listed_pictures
from pipeline.models.build import build_bridge
from pipeline.trained_model import Model
from pipeline.weights.native import save_weights
from tests.support.hostile_server import HostileServer
from tests.support.random_bridges import randomise
from tests.support.tiny_evaluation_sets import save_picture
from tests.support.tiny_towers import save_tiny_eva, tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, one of them deeper, and a file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("a.png", "b.JPG", "deeper/c.webp")):
        save_picture(root / name, number)
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("no picture, and not named as one")
    return root


@pytest.fixture(scope="module")
def opt(weights: dict[str, Path]) -> Model:
    return pipeline.load(weights["opt"])


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("batch_size", ["1", "2", "32"])
def test_a_folder_is_captioned_and_a_bad_picture_stops_nothing(
    batch_size: str, weights: dict[str, Path], opt: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(weights["opt"]), "--image", str(folder), "gone.jpg", "file://host/a.jpg"]
    assert main([*command, "--batch-size", batch_size]) == 1
    output, errors = capsys.readouterr()
    names = [str(folder / name) for name in ("a.png", "b.JPG", "deeper/c.webp")]
    expected = [{"image": name, "text": opt.caption(name)} for name in names]
    assert lines(output) == expected
    told = [line for line in errors.splitlines() if "left out" in line]
    for line, word in zip(told, ("broken.jpg", "gone.jpg", "refused_scheme", "3 of 6 were left out"), strict=True):
        assert word in line


def test_several_pictures_are_of_one_text(
    weights: dict[str, Path], opt: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folder / "a.png"), str(folder / "b.JPG")]
    prompt = "<image> a photo. <image> another of"
    [wanted] = opt.caption([names], prompt)
    flags = ["--weights", str(weights["opt"])]
    assert main([*flags, "--image", *names, "--together", "--prompt", prompt]) == 0
    assert lines(capsys.readouterr().out) == [{"images": names, "text": wanted}]
    listed = tmp_path / "list.jsonl"
    rows = [{"images": names, "prompt": prompt}, {"images": names}, {"images": names, "prompt": "a <image>"}]
    rows += [{"images": [names[0], "gone.jpg"], "prompt": prompt}, {"images": []}, {"image": "a", "images": ["b"]}]
    rows += [{"image": names[0], "question": "what is <image>?"}, {"images": ["a", 3], "prompt": prompt}]
    listed.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert main([*flags, "--jsonl", str(listed)]) == 1
    output, errors = capsys.readouterr()
    assert [line["text"] for line in lines(output)] == [wanted]
    for number, word in enumerate(("0 marks", "1 marks", "gone.jpg", "image []", "has no image", "stand in", "'a', 3")):
        assert word in errors.splitlines()[-8 + number]


def test_a_url_is_fetched_through_the_guard(
    weights: dict[str, Path], opt: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HostileServer() as web:
        web.body, web.location = (folder / "a.png").read_bytes(), "identity"
        listed = tmp_path / "list.jsonl"
        listed.write_text(json.dumps({"image": f"{web.url}/packed"}) + "\n")
        command = ["--weights", str(weights["opt"]), "--image", f"{web.url}/badgateway", "--jsonl", str(listed)]
        assert main([*command, "--allow-loopback"]) == 1
        output, errors = capsys.readouterr()
        assert "/badgateway: cannot be fetched (HTTP 502)" in errors
        assert [line["text"] for line in lines(output)] == [opt.caption(folder / "a.png")]
        asked = len(web.asked)
        assert main(command) == 1
        assert capsys.readouterr().err.count("cannot be fetched (refused_address)") == 2 and len(web.asked) == asked
        with pytest.raises(ValueError, match="refused_address"):
            opt.caption(f"{web.url}/packed")
        web.body = b"no picture\x1b[2J"
        assert main([*command[:2], "--image", f"{web.url}/packed", "--allow-loopback"]) == 1
        assert f"{web.url}/packed" in capsys.readouterr().err


def test_flags_change_prompt_question_and_search(
    weights: dict[str, Path], opt: Model, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, output = str(folder / "a.png"), tmp_path / "new" / "lines.jsonl"
    command = ["--weights", str(weights["opt"]), "--image", picture]
    assert main([*command, "--question", "colour ?", "--prompt", "question {} answer", "--output", str(output)]) == 0
    answer = opt.answer(picture, "colour ?", prompt="question {} answer")
    assert lines(output.read_text()) == [{"image": picture, "question": "colour ?", "text": answer}]
    capsys.readouterr()
    assert main([*command, "--question", "colour ?", "--prompt", "short-answer"]) == 0
    short = opt.answer(picture, "colour ?", prompt="Question: {} Short answer:")
    assert lines(capsys.readouterr().out)[0]["text"] == short
    sampling = ["--top-p", "0.9", "--temperature", "3", "--seed", "4"]
    texts = []
    for flags in (sampling, sampling, [*sampling[:-1], "5"], ["--num-beams", "2", "--max-new-tokens", "3"]):
        assert main([*command, "--prompt", "the picture", *flags]) == 0
        texts.append(lines(capsys.readouterr().out)[0]["text"])
    assert texts[0] == texts[1] != texts[2]
    assert texts[3] == opt.caption(picture, "the picture", num_beams=2, max_new_tokens=3)


def test_lines_of_json_say_what_is_asked_and_come_back_with_their_fields(
    weights: dict[str, Path], opt: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"image": "a.png", "question": "colour ?", "id": 7},
        {"image": "b.JPG", "prompt": "the picture"},
        {"image": "b.JPG"},
        {"image": "broken.jpg"},
        {"image": "a.png", "question": "number ?", "prompt": "question {}"},
    ]
    bad = ['{"image": 3}', '{"file": "a.png"}', "[1]", "{", '{"image": "a.png", "question": "a", "prompt": "b"}']
    path = folder / "asked.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "", *bad]))
    assert main(["--weights", str(weights["opt"]), "--jsonl", str(path)]) == 1
    output, errors = capsys.readouterr()
    a, b = folder / "a.png", folder / "b.JPG"
    texts = [
        opt.answer(a, "colour ?"),
        opt.caption(b, "the picture"),
        opt.caption(b),
        opt.answer(a, "number ?", "question {}"),
    ]
    kept = [row for row in rows if row["image"] != "broken.jpg"]
    assert lines(output) == [{**row, "text": text} for row, text in zip(kept, texts, strict=True)]
    assert [f"asked.jsonl:{number}: " in errors for number in range(6, 12)] == [False, True, True, True, True, True]
    assert "6 of 10 were left out" in errors


@pytest.mark.parametrize("name", ["opt", "tuned"])
def test_a_conversation_repeats_its_earlier_turns(
    name: str,
    weights: dict[str, Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, picture = pipeline.load(weights[name]), folder / "a.png"
    monkeypatch.setattr("sys.stdin", io.StringIO("colour ?\n\nnumber ?\n"))
    assert main(["--weights", str(weights[name]), "--image", str(picture), "--chat", "--max-new-tokens", "4"]) == 0
    answers = capsys.readouterr().out.splitlines()

    def expected(prompt: str, question: str) -> str:
        read = [question] if name == "tuned" else None
        how = {"num_beams": 5, "max_new_tokens": 4, "min_new_tokens": 1, "length_penalty": 1.0}
        return model.write([picture], [prompt], read, **how)[0]

    if name == "opt":
        first = expected("Question: colour ? Answer:", "")
        second = expected(f"Question: colour ? Answer: {first}. Question: number ? Answer:", "")
    else:  # its own prompt, its questions cleaned as in training
        first = expected("question colour ? short answer", "colour ?")
        second = expected(f"question colour ? short answer {first}. question number ? short answer", "number ?")
    assert answers == [first, second] and first


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "argument --image: is missing"),
        (["--image", "a", "b", "--chat"], 2, "argument --chat: takes one --image"),
        (["--image", "a", "--top-p", "0.5", "--num-beams", "2"], 2, "argument --num-beams: has no effect"),
        (["--image", "a", "--seed", "1"], 1, "give --top-p (top_p) as well"),
        (["--image", "a", "--top-p", "1.5"], 1, "--top-p (top_p) 1.5"),
        (["--jsonl", "gone.jsonl"], 1, "gone.jsonl: no such file"),
        (["--image", "a", "--set", "seed=2"], 1, "--set seed=2: these weights hold their own recipe"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(
    flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(["--weights", "gone", *flags]) == code
    except SystemExit as end:
        assert end.code == code
    errors = capsys.readouterr().err
    assert message in errors and len(errors.splitlines()) == 1


def test_a_list_that_is_a_pipe_or_a_device_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert main(["--weights", "gone", "--jsonl", str(path)]) == 1
        assert capsys.readouterr().err == f"error: {path}: is not a regular file\n"


def test_a_line_that_is_too_long_is_counted_and_the_next_ones_are_read(tmp_path: Path) -> None:
    path, good = tmp_path / "asked.jsonl", b'{"image": "a"}\n'
    for longer in (1, LONGEST_LINE, 3 * LONGEST_LINE):
        path.write_bytes(good + b"x" * (LONGEST_LINE + longer) + b"\n" + good + b"y" * 2 * LONGEST_LINE)
        found = list(listed_pictures(path))
        assert [each.fault is None for each in found] == [True, False, True, False]
        assert str(found[1].fault) == f"{path}:2: is longer than {LONGEST_LINE} bytes"
        assert count_lines(path) == 4


def test_weights_of_stage_1_write_no_text(
    weights: dict[str, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weights", str(weights["stage1"]), "--image", str(folder)]) == 1
    assert "are of stage 1; this needs weights of stage 2" in capsys.readouterr().err


def test_weights_of_other_formats_need_a_recipe_and_write_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_eva(tmp_path / "towers" / "vision")
    recipe = parse_recipe(tiny_recipe(tmp_path / "towers", tmp_path / "m.json", tmp_path / "run", 2, "opt"))
    (native := tmp_path / "native").mkdir()
    save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, native)
    (yaml := tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())  # JSON is YAML
    expected = pipeline.load(native).caption(folder / "a.png")
    for kind, name in (("lavis", "weights.pth"), ("huggingface", "exported")):
        assert convert([str(native), str(tmp_path / name), "--from", "native", "--to", kind]) == 0
        command = ["--weights", str(tmp_path / name), "--image", str(folder / "a.png")]
        capsys.readouterr()
        assert main([*command, "--recipe", str(yaml)]) == 0
        assert lines(capsys.readouterr().out)[0]["text"] == expected
        assert main(command) == 1
        assert "--recipe: is missing" in capsys.readouterr().err
