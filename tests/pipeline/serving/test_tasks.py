"""What the page asks gives what `pipeline.load` gives; lines and pictures of hostile clients are one line each."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.prompts import CHAT_DECODING, chat_prompt
from pipeline.serving.tasks import MAX_CONVERSATION_LENGTH, MAX_PICTURES, MAX_TEXT_LENGTH, MAX_TEXTS, Tasks
from pipeline.trained_model import Model
from tests.support.web_folder import jpeg_bytes, make_web, served

PICTURE = jpeg_bytes(5)
TURNS = [["colour ?", "red"], ["number ?", ""]]


@pytest.fixture(scope="module")
def models(weights: dict[str, Path]) -> dict[str, Model]:
    return {name: pipeline.load(folder) for name, folder in weights.items()}


def answered(model: Model, task: str, asked: Any, picture: bytes = PICTURE) -> Any:
    line = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    kind, content = Tasks(model).by_path()[f"/{task}"](line, picture)
    assert kind == "application/json"
    return json.loads(content)


def test_each_stage_has_its_tasks(models: dict[str, Model]) -> None:
    assert sorted(Tasks(models["stage1"]).by_path()) == ["/attention", "/match", "/picture"]
    assert sorted(Tasks(models["t5"]).by_path()) == ["/answer", "/attention", "/caption", "/picture"]


@pytest.mark.parametrize("name", ["t5", "opt"])
def test_a_prompt_may_have_several_pictures(name: str, models: dict[str, Model]) -> None:
    model, pictures = models[name], [PICTURE, jpeg_bytes(6), jpeg_bytes(7)]
    several = {"sizes": [len(each) for each in pictures]}
    for prompt, shown in (("red", pictures[:1]), ("<image> red\n<image> photo <image> of", pictures)):
        asked = {"prompt": prompt} | (several if len(shown) > 1 else {})
        [expected] = model.caption([shown if len(shown) > 1 else PICTURE], prompt)
        assert answered(model, "caption", asked, b"".join(shown))["text"] == " ".join(expected.split())
    one = {"sizes": [len(PICTURE)]}
    assert answered(model, "caption", one) == answered(model, "caption", {})
    for asked, message in (
        ({}, "'a photo of': has 0 marks <image> for 3 pictures"),
        ({"prompt": "<image> <image> a"}, "has 2 marks <image> for 3 pictures"),
        ({"prompt": " "}, "prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            answered(model, "caption", several | asked, b"".join(pictures))


@pytest.mark.parametrize("name", ["t5", "opt", "tuned"])
def test_text_is_what_the_model_writes(name: str, models: dict[str, Model]) -> None:
    model = models[name]
    earlier = [(question, answer) for question, answer in TURNS]
    expected = model.answer(PICTURE, "photo ?", chat_prompt(model.recipe), earlier, **CHAT_DECODING)
    found = answered(model, "answer", {"question": " photo\n ? ", "earlier": TURNS})["text"]
    assert found == " ".join(expected.split()) and found
    if name == "tuned":
        with pytest.raises(ValueError, match="was trained to read a question"):
            answered(model, "caption", {})
    else:
        assert answered(model, "caption", {})["text"] == " ".join(model.caption(PICTURE).split())


def test_scores_are_those_of_the_model(models: dict[str, Model]) -> None:
    texts = ["a red picture", "a photo of green"]
    found, expected = answered(models["stage1"], "match", {"texts": texts}), models["stage1"].match(PICTURE, texts)
    np.testing.assert_allclose([found["itc"], found["itm"]], [expected.itc, expected.itm], atol=1e-6)


@pytest.mark.parametrize("name", ["stage1", "t5", "tuned"])
def test_maps_are_those_of_the_model(name: str, models: dict[str, Model]) -> None:
    found = answered(models[name], "attention", {"question": "colour ?"})
    expected = models[name].attention(PICTURE, "colour ?")
    assert found["side"] == 4
    np.testing.assert_allclose(found["queries"], expected.reshape(4, 16), atol=1e-5)


def test_control_characters_reach_neither_the_model_nor_the_page(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answer(*given: Any, **how: Any) -> str:
        asked.append(given)
        return "red\x1b[2J\n\u202efish"

    monkeypatch.setattr(Model, "answer", answer)
    found = answered(models["t5"], "answer", {"question": "what\x1b[2J ?", "earlier": [["a\x00", "b\u202e"]]})
    assert found == {"text": "red\\x1b[2J \\u202efish"}
    assert asked[0][2] == "what\\x1b[2J ?" and asked[0][4] == [("a\\x00", "b\\u202e")]


LONG = "a" * (MAX_TEXT_LENGTH + 1)
REFUSED: list[tuple[str, Any, str]] = [
    ("caption", b"", "Expecting value"),
    ("caption", b"\xff", "can't decode"),
    ("caption", b"[" * 60_000, "nested too deep"),
    ("caption", b'{"a": 1, "a": 2}', "a name comes twice"),
    ("caption", b"[]", "valid dictionary"),
    ("caption", {"num_beams": 10**9}, "num_beams: Extra inputs are not permitted"),
    ("caption", {"prompt": ""}, "prompt: String should have at least 1 character"),
    ("caption", {"prompt": "a" * (MAX_CONVERSATION_LENGTH + 1)}, "prompt: String should have at most"),
    ("caption", {"sizes": []}, "sizes: List should have at least 1"),
    ("caption", {"sizes": [1] * (MAX_PICTURES + 1)}, "sizes: List should have at most"),
    ("caption", {"sizes": [len(PICTURE), 1]}, f"are not those of pictures with {len(PICTURE)} bytes"),
    ("caption", {"sizes": [len(PICTURE) + 1, -1]}, f"are not those of pictures with {len(PICTURE)} bytes"),
    ("caption", {"sizes": [float(len(PICTURE))]}, "sizes.0: Input should be a valid integer"),
    ("answer", {"question": "q"}, "earlier: Field required"),
    ("answer", {"question": "", "earlier": []}, "question: String should have at least 1 character"),
    ("answer", {"question": " \n", "earlier": []}, "question: String should have at least 1 character"),
    ("answer", {"question": LONG, "earlier": []}, "question: String should have at most"),
    ("answer", {"question": 3, "earlier": []}, "question: Input should be a valid string"),
    ("answer", b'{"question": "\\ud800", "earlier": []}', "question"),
    ("answer", {"question": "q", "earlier": [["a", "b"]] * 17}, "earlier: List should have at most 16"),
    ("answer", {"question": "q", "earlier": [["a"]]}, "earlier.0: List should have at least 2"),
    ("answer", {"question": "q", "earlier": [["a", LONG]]}, "earlier.0.1: String should have at most"),
    ("answer", {"question": "q", "earlier": [[LONG[1:], LONG[1:]]] * 5}, f"than {MAX_CONVERSATION_LENGTH} characters"),
    ("attention", {"question": LONG}, "question: String should have at most"),
    ("picture", {"url": "https://host/" + "a" * 2000}, "url: String should have at most"),
    ("picture", {"url": "file:///etc/passwd"}, "cannot be fetched (refused_scheme)"),
    ("picture", {"url": "http://127.0.0.1:1/a.jpg"}, "cannot be fetched (refused_address)"),
    ("picture", {"url": "http://169.254.169.254/latest/meta-data"}, "cannot be fetched (refused_address)"),
    ("match", {"texts": []}, "texts: List should have at least 1"),
    ("match", {"texts": ["a"] * (MAX_TEXTS + 1)}, "texts: List should have at most"),
    ("match", {"texts": [LONG]}, "texts.0: String should have at most"),
]


@pytest.mark.parametrize(("task", "asked", "message"), REFUSED, ids=[f"{t}-{m[:30]}" for t, _, m in REFUSED])
def test_what_is_not_a_bounded_question_is_refused(
    task: str, asked: Any, message: str, models: dict[str, Model]
) -> None:
    with pytest.raises(ValueError) as refused:
        answered(models["stage1" if task == "match" else "t5"], task, asked)
    assert message in str(refused.value)


def _flat_png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("picture", "message"),
    [(b"", "is no picture of"), (b"GIF89a", "is not readable"), (b"<svg onload='alert(1)'/>", "is no picture of"),
     (b"%!PS-Adobe-3.0 EPSF-3.0", "is no picture of"), (_flat_png(20_000, 20_000), "400000000 pixels")],
)  # fmt: skip
def test_hostile_pictures_are_one_line(picture: bytes, message: str, models: dict[str, Model]) -> None:
    for name, task in (("t5", "caption"), ("stage1", "attention")):
        with pytest.raises(ValueError, match=message):
            answered(models[name], task, {}, picture)


def test_a_conversation_that_the_language_model_cannot_hold_is_refused(models: dict[str, Model]) -> None:
    """The tiny OPT has 128 positions."""
    with pytest.raises(ValueError, match=r"more than the language model.s 128 positions; shorten it"):
        answered(models["opt"], "answer", {"question": "red", "earlier": [["red " * 10, "red"]] * 10})


def test_a_picture_by_its_url_comes_as_it_is(models: dict[str, Model], tmp_path: Path) -> None:
    routes: dict[str, dict[str, Any]] = {
        "/a.jpg": {"behaviour": "ok", "file": "images/a.jpg"},
        "/page": {"behaviour": "ok", "file": "images/page"},
    }
    make_web(tmp_path, routes)
    (tmp_path / "images" / "page").write_bytes(b"<html><script>alert(1)</script></html>")
    with served(tmp_path) as site:
        fetch = Tasks(models["t5"], allow_loopback=True).picture
        content = (tmp_path / "images" / "a.jpg").read_bytes()
        assert fetch(json.dumps({"url": f"{site}/a.jpg"}).encode(), b"") == ("image/jpeg", content)
        for name, message in (("page", "/page: is not readable as a picture .is no picture of"), ("gone", "HTTP 404")):
            with pytest.raises(ValueError, match=message):
                fetch(json.dumps({"url": f"{site}/{name}"}).encode(), b"")
