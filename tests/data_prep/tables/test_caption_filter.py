"""Captions are dropped for their words or their language only where that is sure."""

import pytest

from data_prep.shards.ledger import Drop
from data_prep.tables.caption_filter import CaptionRules, passing


def test_without_rules_every_caption_passes() -> None:
    assert passing(["x", "ein Haus am See"], CaptionRules()) == ("x", "ein Haus am See")
    assert passing([], CaptionRules()) == Drop("no_caption")


def test_a_caption_of_marks_alone_is_none() -> None:
    assert passing(["...", "a dog", "?!"], CaptionRules()) == ("a dog",)
    assert passing(["***", "- -"], CaptionRules(min_words=2)) == Drop("no_caption")


def test_words_are_counted_and_the_first_fault_is_the_rows() -> None:
    rules = CaptionRules(min_words=2, max_words=4)
    assert passing(["dog", "a dog", "a dog on a red sofa"], rules) == ("a dog",)
    assert passing(["dog", "a dog on a red sofa"], rules) == Drop("caption_too_short")
    assert passing(["a dog on a red sofa", "dog"], rules) == Drop("caption_too_long")


FOREIGN = (
    "Ein Hund läuft über die Wiese",
    "un chat noir sur le canapé",
    "gatto nero sul divano",
    "una casa de campo con jardín",
    "zwarte kat op de bank",
    "красная машина на дороге",
    "犬が走る",
    "حصان في الحقل",
)
ENGLISH_OR_OPEN = (
    "Man riding a horse",
    "a photo of a red square above a blue circle",
    "dark green plate",
    "Used 2012 Ford Focus SE for sale",
    "two small yellow triangles",
    "IMG_2034.jpg",
    "Toyota Corolla",
    "a dog",
)


@pytest.mark.parametrize("caption", FOREIGN)
def test_what_is_surely_another_language_is_dropped(caption: str) -> None:
    assert passing([caption], CaptionRules(languages=("en",))) == Drop("caption_language")


@pytest.mark.parametrize("caption", ENGLISH_OR_OPEN)
def test_english_and_undecided_captions_stay(caption: str) -> None:
    assert passing([caption], CaptionRules(languages=("en",))) == (caption,)


def test_several_languages_may_be_wanted() -> None:
    rules = CaptionRules(languages=("de", "en"))
    assert passing([FOREIGN[0], FOREIGN[1], ENGLISH_OR_OPEN[0]], rules) == (FOREIGN[0], ENGLISH_OR_OPEN[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"min_words": 3, "max_words": 2}, "--max-words 2"), ({"languages": ("en", "klingon")}, "--language klingon")],
)
def test_rules_that_cannot_hold_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionRules(**fields)  # type: ignore[arg-type]
