"""Normalises answers to questions as the VQA team's script does, to score predictions and to train on the answers."""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(["a", "an", "the"])
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
CACHED = 200_000  # VQAv2 val has two million answers, and most of them repeat
MAX_PERIODS_REMOVED = 32  # the published script passes a flag (re.UNICODE = 32) where the count stands

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")

# Words that lose an apostrophe in typing; each is recognised with one of its apostrophes left out.
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll "
    "somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll "
    "you're you've 'ow's'at "
)
CONTRACTIONS = {
    form[:at] + form[at + 1 :]: form
    for form in _CONTRACTIONS.split()
    for at, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # as published


@lru_cache(maxsize=CACHED)
def normalise_punctuation(text: str) -> str:
    """Drop or blank each punctuation mark, judged by the whole original text; then drop the first 32 loose periods."""
    everywhere = _DIGIT_COMMA_DIGIT.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        drop = everywhere or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if drop else " ")
    return _PERIOD.sub("", cleaned, count=MAX_PERIODS_REMOVED)


def normalise_words(text: str) -> str:
    """Lower case, number words as digits, no articles, apostrophes restored, single spaces."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=CACHED)
def normalise(text: str) -> str:
    return normalise_words(normalise_punctuation(text))
