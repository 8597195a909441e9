"""VQA accuracy against the rules written a second time, and against cases worked out by hand."""

import random

import pytest

from eval.metrics.vqa_accuracy import legacy_accuracy, official_accuracy
from pipeline.answers import CONTRACTIONS, normalise
from tests.reference import vqa_rules

PARTS = [
    "two",
    "the",
    "a",
    "dont",
    "couldnt've",
    "don't",
    "red",
    "Red",
    "1,000",
    "2",
    "a.m.",
    "3.5",
    "ten",
    "none",
    "U.S.",
]
PARTS += [
    "yes",
    "no",
    "hes",
    "twas",
    "somebody'd",
    "o'clock",
    "oclock",
    "black/white",
    "t-shirt",
    "dog's",
    "?",
    "$5",
    "",
    ".",
]
GLUE = [" ", " ", " ", "-", ",", ", ", " ,", "/", ".", "\n", "\t", "'", "!", "  ", '"', ";", "(", "_"]


def awkward(rng: random.Random) -> str:
    text = rng.choice(PARTS)
    for _ in range(rng.randint(0, 3)):
        text += rng.choice(GLUE) + rng.choice(PARTS)
    return text


def test_both_rules_equal_the_oracle_on_fuzzed_answers() -> None:
    rng = random.Random(0)
    for _ in range(5000):
        pool = [awkward(rng) for _ in range(rng.randint(1, 3))]
        answers = [rng.choice(pool) for _ in range(10)]
        prediction = rng.choice([*pool, awkward(rng), pool[0].upper()])
        assert official_accuracy(prediction, answers) == pytest.approx(
            vqa_rules.official(prediction, answers), abs=1e-9
        )
        assert legacy_accuracy(prediction, answers) == pytest.approx(vqa_rules.legacy(prediction, answers), abs=1e-9)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_score_by_number_of_agreeing_people(matches: int, score: float) -> None:
    answers = ["red"] * matches + [f"other {place}" for place in range(10 - matches)]
    assert official_accuracy("red", answers) == pytest.approx(score)


def test_the_official_rule_normalises_only_when_the_answers_differ() -> None:
    assert official_accuracy("Red", ["red"] * 10) == 0
    assert legacy_accuracy("Red", ["red"] * 10) == 100
    assert official_accuracy("Red", ["red"] * 9 + ["blue"]) == 100
    assert official_accuracy("2", ["two"] * 9 + ["blue"]) == 100
    assert legacy_accuracy("2", ["two"] * 9 + ["blue"]) == 0  # answers' words stay as they are in the legacy rule


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The dog's", "dog's"),
        ("1,000 men", "1000 men"),
        ("black/white", "black white"),
        ("black/ white", "black white"),
        ("a.m.", "am"),
        ("3.5.", "3.5"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("." * 40, "." * 8),
        ("None", "0"),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_contractions_are_the_oracles_and_as_many_as_published() -> None:
    assert {key: CONTRACTIONS[key] for key in vqa_rules.CONTRACTIONS} == vqa_rules.CONTRACTIONS
    assert len(CONTRACTIONS) == 114  # published: 120, of which 4 have capitals (never matched) and 2 map to themselves
