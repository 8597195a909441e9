"""Which captions of a table are worth a picture: by their words and their language, before anything is fetched.

Only what is surely wrong is dropped: short alt-texts leave most languages possible, and an undecided caption stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from data_prep.shards.ledger import Drop

WIDESPREAD = (
    "ar",
    "bg",
    "bn",
    "ca",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fa",
    "fi",
    "fr",
    "he",
    "hi",
    "hr",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "lt",
    "lv",
    "ms",
    "nl",
    "no",
    "pl",
    "pt",
    "ro",
    "ru",
    "sk",
    "sl",
    "sr",
    "sv",
    "ta",
    "te",
    "th",
    "tr",
    "uk",
    "ur",
    "vi",
    "zh",
)
"""Languages that captions are told apart by, beside those wanted: of all that the model knows, rare ones would win
many a short English caption."""
SURE = 0.6
"""Probability of the three likeliest other languages together (kin such as Russian and Bulgarian share it) from which a
caption counts as written in one of them."""
MARGIN = 10.0
"""How many times likelier than the wanted ones together it must be as well."""


@dataclass(frozen=True)
class CaptionRules:
    """Bounds that a caption has to keep; the defaults let every caption pass."""

    min_words: int = 0
    max_words: int | None = None
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < max(1, self.min_words):
            raise ValueError(f"--max-words {self.max_words}: less than --min-words, so that no caption could pass")
        if self.languages and (unknown := set(self.languages) - set(_identifier(()).labels)):
            raise ValueError(
                f"--language {' '.join(sorted(unknown))}: no language that can be told; use codes as en, de"
            )


def passing(captions: Sequence[str], rules: CaptionRules) -> tuple[str, ...] | Drop:
    """The captions that keep the rules, in order; when there is none, why the first one does not."""
    faults = [_fault(caption, rules) for caption in captions]
    kept = tuple(caption for caption, fault in zip(captions, faults, strict=True) if fault is None)
    if kept:
        return kept
    return Drop(faults[0] or "no_caption") if faults else Drop("no_caption")


def _fault(caption: str, rules: CaptionRules) -> str | None:
    words = len(caption.split())
    if words < rules.min_words:
        return "caption_too_short"
    if rules.max_words is not None and words > rules.max_words:
        return "caption_too_long"
    if rules.languages and _in_another_language(caption, rules.languages):
        return "caption_language"
    return None


def _in_another_language(caption: str, wanted: tuple[str, ...]) -> bool:
    likely = dict(_identifier(wanted).rank(caption))
    wanted_share = sum(float(likely.pop(language, 0.0)) for language in wanted)
    others = sum(sorted(map(float, likely.values()))[-3:])
    return others >= SURE and others >= MARGIN * wanted_share


@cache
def _identifier(wanted: tuple[str, ...]) -> Any:
    """The language model (py3langid's, in its package), made to choose among the widespread and the wanted ones."""
    from py3langid import langid

    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    if wanted:
        identifier.set_languages(sorted({*WIDESPREAD, *wanted}))
    return identifier
