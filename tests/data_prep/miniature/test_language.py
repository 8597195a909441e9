"""The drawn world's language: what it says of a scene is true, and the judge of truth cannot be fooled."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.miniature.language import ask, describe, describe_fully, is_true
from data_prep.miniature.scenes import COLOURS, HELD_OUT, SHAPES, Scene, Thing, draw_scene

scenes = st.builds(
    lambda seed, held_out: draw_scene(np.random.default_rng(seed), held_out=held_out),
    st.integers(0, 2**32),
    st.sampled_from(["never", "some", "all"]),
)
seeds = st.integers(0, 2**32)
CIRCLE = Thing("circle", "red", "small", 0.25, 0.5)
SQUARE = Thing("square", "blue", "big", 0.75, 0.5)
PAIR = Scene((CIRCLE, SQUARE), "grey")


@settings(max_examples=300, deadline=None)
@given(scenes, seeds)
def test_every_caption_is_true_of_its_scene(scene: Scene, seed: int) -> None:
    rng = np.random.default_rng(seed)
    caption = describe(scene, rng)
    assert is_true(caption, scene), caption
    assert is_true(describe_fully(scene, rng), scene)
    assert caption == caption.lower()
    assert 2 <= len(caption.split()) <= 16


@settings(max_examples=200, deadline=None)
@given(scenes, seeds, st.data())
def test_changing_a_named_attribute_makes_the_full_caption_false(scene: Scene, seed: int, data: st.DataObject) -> None:
    caption = describe_fully(scene, np.random.default_rng(seed))
    position = data.draw(st.integers(0, len(scene.things) - 1))
    thing = scene.things[position]
    unused = [colour for colour in COLOURS if all(other.colour != colour for other in scene.things)]
    changed = dataclasses.replace(thing, colour=data.draw(st.sampled_from(unused)))
    things = (*scene.things[:position], changed, *scene.things[position + 1 :])
    assert not is_true(caption, Scene(things, scene.background))
    assert not is_true(caption, Scene(scene.things, "white" if scene.background != "white" else "black"))


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle",
        "A small red circle left of a large blue square.",
        "a blue square to the right of a little circle on a grey background",
        "a grey background with a thing and a red circle",
        "two things including a red thing",
        "there are two shapes on a grey background",
        "the circle is left of the square",
    ],
)
def test_true_sentences_in_other_words_are_true(caption: str) -> None:
    assert is_true(caption, PAIR)


@pytest.mark.parametrize(
    "caption",
    [
        "a blue circle",
        "a big red circle",
        "a red circle and a red circle",
        "a red circle right of a blue square",
        "a red circle above a blue square",
        "a red circle on a white background",
        "three things including a red circle",
        "a red circle and a blue square and a thing",
        "a red circle left of",
        "a red red circle",
        "a red circle on a grey background on a grey background",
        "img_2034.jpg",
        "",
        "red circle blue square",
        "a red circle left of a blue square above",
    ],
)
def test_false_or_unreadable_sentences_are_false(caption: str) -> None:
    assert not is_true(caption, PAIR)


@settings(max_examples=300, deadline=None)
@given(scenes, seeds)
def test_questions_have_ten_answers_that_mostly_agree(scene: Scene, seed: int) -> None:
    question = ask(scene, np.random.default_rng(seed))
    assert len(question.answers) == 10
    assert question.answers.count(question.answer) > 5
    assert question.text.startswith(question.question_type) and question.text.endswith("?")
    expected = {"how many": "number", "is there a": "yes/no", "is the": "yes/no"}
    assert question.answer_type == expected.get(question.question_type, "other")


@settings(max_examples=200, deadline=None)
@given(scenes, seeds)
def test_answers_agree_with_the_judge_of_captions(scene: Scene, seed: int) -> None:
    question = ask(scene, np.random.default_rng(seed))
    words = question.text.rstrip("?").split()
    if question.question_type == "is there a":
        claim = " ".join(words[2:])
    elif question.question_type == "what colour is the":
        claim = "a " + " ".join([*words[4:-1], question.answer, words[-1]])
    elif question.question_type == "what shape is the":
        claim = "a " + " ".join([*words[4:-1], question.answer])
    elif question.question_type == "is the":
        claim = " ".join(words[1:]).replace(" is ", " ")
    else:
        return
    assert is_true(claim, scene) == (question.answer != "no"), (claim, question.answer)


def test_yes_and_no_are_balanced() -> None:
    rng = np.random.default_rng(0)
    answers = [ask(draw_scene(rng, held_out="never"), rng) for _ in range(4000)]
    for kind in ("is there a", "is the"):
        said = [question.answer for question in answers if question.question_type == kind]
        assert 0.4 < said.count("yes") / len(said) < 0.6


def test_common_scenes_never_name_a_held_out_word() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = draw_scene(rng, held_out="never")
        question = ask(scene, rng)
        said = f"{describe(scene, rng)} {question.text} {' '.join(question.answers)}".replace("?", "").split()
        assert not HELD_OUT & set(said)
    assert set(SHAPES) > HELD_OUT & set(SHAPES)
