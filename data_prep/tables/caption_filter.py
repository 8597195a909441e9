"""Drops captions by their number of words and by their language, before anything is fetched.

A caption is dropped for its language only when it is very probably in another one. A short alt-text could be in many
languages, so it stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from data_prep.shards.ledger import Drop
from pipeline.data.captions import has_words

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
"""The languages that a caption is compared with, beside the wanted ones. Among all languages of the model, rare ones
would win many short English captions ("Nike Air Max" as Nigerian Pidgin)."""
SURE = 0.6
"""A caption counts as foreign when the three most likely other languages together have at least this probability.
Three, because related languages such as Russian and Bulgarian share it."""
MARGIN = 10.0
"""These three must also be at least this many times as likely as all wanted languages together."""


@dataclass(frozen=True)
class CaptionRules:
    """Rules that a caption must satisfy; with the defaults every caption that has a letter or digit passes."""

    min_words: int = 0
    max_words: int | None = None
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = max(1, self.min_words)
        if self.max_words is not None and self.max_words < least:
            raise ValueError(f"--max-words {self.max_words}: must be at least {least} (see --min-words)")
        if self.languages and (unknown := set(self.languages) - set(_identifier(()).labels)):
            raise ValueError(
                f"--language {' '.join(sorted(unknown))}: is not a known language code; use codes such as en or de"
            )


def passing(captions: Sequence[str], rules: CaptionRules) -> tuple[str, ...] | Drop:
    """The captions that satisfy the rules, in order; if there is none, why the first one does not."""
    faults = [_fault(caption, rules) for caption in captions]
    kept = tuple(caption for caption, fault in zip(captions, faults, strict=True) if fault is None)
    if kept:
        return kept
    return Drop(faults[0] or "no_caption") if faults else Drop("no_caption")


def _fault(caption: str, rules: CaptionRules) -> str | None:
    words = len(caption.split())
    if not has_words(caption):
        return "no_caption"
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
    """py3langid's model (its weights are in the package), limited to the widespread and the wanted languages."""
    from py3langid import langid

    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    if wanted:
        identifier.set_languages(sorted({*WIDESPREAD, *wanted}))
    return identifier
