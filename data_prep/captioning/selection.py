"""Selects the captions of an image: first by rules on the text, then by score. Pure functions without a model.

CapFilt bootstraps captions (BLIP, section 3.3); BLIP-2 keeps the two of ten synthetic captions and the web caption that
CLIP ranks best.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_prep.tables.unicode_text import without_surrogates

Source = Literal["web", "synthetic"]

MIN_WORDS = 2
"""A caption of fewer words says too little about a picture ("img_2034.jpg")."""
LONGEST_REPEAT = 6
"""Repeats of runs of up to this many words are looked for."""


@dataclass(frozen=True)
class Candidate:
    """A caption that may be kept. `position` is its place among the candidates of the image; web captions come
    first."""

    position: int
    caption: str
    source: Source
    score: float | None


@dataclass(frozen=True)
class Verdict:
    """The result for a candidate: `rank` 0 is the best kept one; `rank` None means dropped, for `reason`."""

    candidate: Candidate
    rank: int | None
    reason: str


def normalise(caption: str) -> str:
    """One line with single spaces, in Unicode's composed form (NFKC); halves of surrogate pairs are replaced."""
    return " ".join(unicodedata.normalize("NFKC", without_surrogates(caption)).split())


def fault_of(caption: str) -> str | None:
    """Why a normalised caption is dropped whatever its score is, or None."""
    if not caption:
        return "empty"
    if any(
        unicodedata.category(each) in ("Cc", "Cs", "Co", "Cn") or each == "\N{REPLACEMENT CHARACTER}"
        for each in caption
    ):
        return "unprintable"
    words = [word for word in caption.casefold().split() if any(letter.isalpha() for letter in word)]
    if len(words) < MIN_WORDS:
        return "too_short"
    if _repeats(words):
        return "repeated_words"
    return None


def select(candidates: Sequence[Candidate], top_k: int, min_score: float | None = None) -> list[Verdict]:
    """A verdict on each candidate, in their order; at most `top_k` are kept.

    First captions with a fault are dropped, then those with the words of an earlier one (only letters and digits
    count), then those with a score below `min_score`. The others are ordered by (-score, web first, position).
    """
    reasons: dict[int, str] = {}
    fit: list[Candidate] = []
    seen: set[str] = set()
    for each in candidates:
        wording = re.sub(r"[\W_]+", " ", normalise(each.caption).casefold()).strip()
        fault = fault_of(normalise(each.caption))
        if fault is None and wording in seen:
            fault = "duplicate"
        if fault is None and each.score is None:
            fault = "not_scored"
        if fault is None and min_score is not None and each.score is not None and each.score < min_score:
            fault = "below_min_score"
        if fault is None:
            fit.append(each)
            seen.add(wording)
        else:
            reasons[each.position] = fault
    fit.sort(key=lambda each: (-(each.score or 0.0), each.source != "web", each.position))
    ranks = {each.position: rank for rank, each in enumerate(fit[:top_k])}
    return [
        Verdict(
            each, ranks.get(each.position), "" if each.position in ranks else reasons.get(each.position, "outranked")
        )
        for each in candidates
    ]


def _repeats(words: list[str]) -> bool:
    """Whether a word comes three times in a row, or a run of two words or more twice in a row."""
    if any(one == two == three for one, two, three in zip(words, words[1:], words[2:], strict=False)):
        return True
    return any(
        words[start : start + length] == words[start + length : start + 2 * length]
        for length in range(2, LONGEST_REPEAT + 1)
        for start in range(len(words) - 2 * length + 1)
    )
