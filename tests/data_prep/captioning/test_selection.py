"""The rules of selection, one by one, and what holds for any candidates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.captioning.selection import Candidate, Source, fault_of, normalise, select


def candidates(*entries: tuple[str, Source, float | None]) -> list[Candidate]:
    return [Candidate(position, *entry) for position, entry in enumerate(entries)]


def kept(given: list[Candidate], top_k: int = 2, min_score: float | None = None) -> list[str]:
    verdicts = [verdict for verdict in select(given, top_k, min_score) if verdict.rank is not None]
    return [verdict.candidate.caption for verdict in sorted(verdicts, key=lambda each: each.rank or 0)]


def test_the_best_scores_are_kept_best_first() -> None:
    found = candidates(("web text", "web", 0.2), ("a dog", "synthetic", 0.1), ("a cat", "synthetic", 0.3))
    assert kept(found) == ["a cat", "web text"]
    assert [verdict.reason for verdict in select(found, 2)] == ["", "outranked", ""]
    assert kept(found, top_k=1) == ["a cat"] and kept(found, top_k=9) == ["a cat", "web text", "a dog"]


def test_ties_go_to_the_web_caption_and_then_to_the_first() -> None:
    found = candidates(("a dog", "synthetic", 0.3), ("b dog", "synthetic", 0.3), ("web text", "web", 0.3))
    assert kept(found, top_k=3) == ["web text", "a dog", "b dog"]


def test_a_duplicate_of_the_web_caption_leaves_the_web_caption() -> None:
    found = candidates(("A  Dog.", "web", 0.3), ("a dog", "synthetic", 0.3), ("a cat", "synthetic", 0.1))
    assert [(verdict.rank, verdict.reason) for verdict in select(found, 2)] == [(0, ""), (None, "duplicate"), (1, "")]


def test_a_lone_survivor_is_kept_once() -> None:
    assert kept(candidates(("IMG_2034.jpg", "web", 0.9), ("a dog", "synthetic", 0.1))) == ["a dog"]


def test_none_may_survive() -> None:
    found = candidates(("", "web", None), ("dog", "synthetic", 0.4), ("a dog", "synthetic", None))
    assert kept(found) == []
    assert [verdict.reason for verdict in select(found, 2)] == ["empty", "too_short", "not_scored"]


def test_a_minimum_score_drops_what_lies_below_it() -> None:
    found = candidates(("web text", "web", 0.2), ("a cat", "synthetic", 0.3))
    assert kept(found, min_score=0.25) == ["a cat"] and kept(found, min_score=0.2) == ["a cat", "web text"]


@pytest.mark.parametrize(
    ("caption", "fault"),
    [
        ("", "empty"),
        ("   \t ", "empty"),
        ("dog", "too_short"),
        ("DSC_0001 12 34", "too_short"),
        ("a \x00 dog", "unprintable"),
        ("a \ufffd dog", "unprintable"),
        ("a dog \ue000", "unprintable"),
        ("dog dog dog", "repeated_words"),
        ("a red dog a red dog", "repeated_words"),
        ("a dog and a dog and a dog", "repeated_words"),
        ("A Red a red", "repeated_words"),
        ("a small red circle left of a small red square", None),
        ("a very very big dog", None),
        ("ein Hund, drau\u0308ßen", None),
        ("ﬁre engine", None),
    ],
)
def test_faults_of_captions(caption: str, fault: str | None) -> None:
    assert fault_of(normalise(caption)) == fault


def test_half_a_surrogate_pair_is_unprintable_and_can_be_written() -> None:
    caption = normalise("a \ud83d dog")
    assert fault_of(caption) == "unprintable" and caption.encode()


def test_normalising_joins_lines_and_composes_letters() -> None:
    assert normalise("  a\n cafe\u0301\u00a0ﬁre ") == "a café fire"


texts = st.one_of(st.sampled_from(["a dog", "A DOG.", "a cat", "dog", "", "x x x", "two  words"]), st.text(max_size=12))
entries = st.tuples(
    texts, st.sampled_from(["web", "synthetic"]), st.none() | st.sampled_from([0.1, 0.2]) | st.floats(-1, 1)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(entries, max_size=11), st.integers(1, 4))
def test_laws(drawn: list[tuple[str, Source, float | None]], top_k: int) -> None:
    found = candidates(*drawn)
    verdicts = select(found, top_k)
    assert [verdict.candidate for verdict in verdicts] == found
    chosen = sorted((each for each in verdicts if each.rank is not None), key=lambda each: each.rank or 0)
    assert [each.rank for each in chosen] == list(range(len(chosen))) and len(chosen) <= top_k
    assert all((each.rank is None) == bool(each.reason) for each in verdicts)
    scores = [each.candidate.score for each in chosen]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    wordings = [normalise(each.candidate.caption).casefold() for each in chosen]
    assert len(set(wordings)) == len(wordings)
    if not chosen:
        assert all(each.reason != "outranked" for each in verdicts)
