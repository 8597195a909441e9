"""Caption tokens as pycocoevalcap's Java tokenizer (Stanford PTBTokenizer 3.4.1, lower-cased) gives them, without Java.

The rules were found by observing the Java program. At every position, the rule that matches the longest text wins
(lookahead included); on a tie, the earlier rule. The captions of one call are the lines of one text, as in
pycocoevalcap, because the Java program looks past a line's end: "plan b." ends in the token `b.`, but in `b` when the
next line starts with "A " or "The ".

Known differences:
- 1,013 of the first 65,536 characters: signs of Indic, Semitic and African scripts, and letters newer than the Java
  program; none below U+01BF
- about 1 in 200 lines that mix control characters, soft hyphens and addresses without spaces
- `&apos;` inside addresses and contractions
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from eval.metrics.ptb_rules import (
    ABBREVIATIONS,
    AMPERSANDS,
    APOS,
    COMPOUND,
    ELLIPSIS,
    NUMBER,
    NUMBER_ABBREVIATIONS,
    RULES,
    SPACE,
    TERMINAL_ABBREVIATIONS,
    WORD,
)

# Tokens that pycocoevalcap drops. Lower-casing turns -LRB- into -lrb-, so parentheses stay in both there and here.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# Characters that end a line for Java or for str.splitlines. Inside a caption they would shift every later caption.
LINE_SEPARATORS = re.compile("[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SYMBOLS = {
    "\u2018": "`", "\u201b": "`", "\u2039": "`", "\u0091": "`",
    "\u2019": "'", "\u203a": "'", "\u0092": "'",
    "\u201c": "``", "\xab": "``", "\u0093": "``", '"': "''", "\u201d": "''", "\xbb": "''", "\u0094": "''",
    "\u2013": "--", "\u2014": "--", "\u2015": "--", "\u0096": "--", "\u0097": "--", "\u2026": "...",
    "\xa2": "cents", "\xa3": "#", "\xa4": "$", "\u20a0": "$", "\u20ac": "$", "\u0080": "$",
    "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'",
}  # fmt: skip
SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
_SOFT = re.compile(rf"(?:{COMPOUND}|{NUMBER}|{WORD})\.?", re.IGNORECASE)  # tokens that lose their soft hyphens
_COMPILED = [re.compile(rule, re.IGNORECASE) for rule in RULES]
# The common case, for speed: a plain word before a space, a comma or the end of a line or sentence.
_PLAIN = re.compile(rf"{SPACE}*(?:([A-Za-z]{{2,}}(?:-[A-Za-z]+)*|[A-Za-z])|([A-Za-z]{{2,}})[,.]|([,.]))(?=[ \n]|\Z)")
_WITH_PERIOD = frozenset(f"{ABBREVIATIONS}|{TERMINAL_ABBREVIATIONS}|{NUMBER_ABBREVIATIONS}".split("|"))
_ENTITY = re.compile("&(?:amp|lt|gt);", re.IGNORECASE)  # &quot; and &apos; count in lower case only
_SKIPPED = re.compile(rf"(?:{SPACE}|&nbsp;)+", re.IGNORECASE)


def tokenize(captions: Sequence[str]) -> list[str]:
    """Each caption's tokens, joined by single spaces, as `PTBTokenizer().tokenize` gives them for the same sequence."""
    lines = [LINE_SEPARATORS.sub(" ", caption).replace("&apos;", "'") for caption in captions]
    text, position, end_of_text = "\n".join(lines), 0, False
    tokenized: list[list[str]] = [[]]
    while not end_of_text:
        if position >= len(text):
            end_of_text = True
        elif text[position] == "\n":
            tokenized.append([])
            position += 1
        elif (plain := _PLAIN.match(text, position)) and (plain[2] or "").lower() not in _WITH_PERIOD:
            word = (plain[1] or plain[2] or plain[3]).lower()
            tokenized[-1].extend([word[:3], word[3:]] if word in SPLIT_WORDS else [word])
            position = plain.end()
        elif skipped := _SKIPPED.match(text, position):
            position = skipped.end()
        else:
            raw, position = _longest(text, position)
            tokenized[-1].append(_normal(raw))
    return [
        " ".join(token for token in _as_read(line) if token not in PUNCTUATION) for line in tokenized[: len(captions)]
    ]


def _as_read(line: Sequence[str]) -> Sequence[str]:
    """A line's tokens as pycocoevalcap reads them back: without any white space at the line's end."""
    return " ".join(filter(None, line)).rstrip().split(" ")


def _longest(text: str, position: int) -> tuple[str, int]:
    """The token at `position` and where the next one starts; an unknown character gives no token."""
    best, best_end, next_position = "", position, position + 1
    for rule in _COMPILED:
        match = rule.match(text, position)
        if match and match.end() > best_end:
            best, best_end, next_position = match[1], match.end(), match.end(1)
    return best, next_position


@lru_cache(maxsize=100_000)
def _normal(raw: str) -> str:
    """A token as the Java program writes it: lower case, brackets and quotes spelt out, no plain space inside."""
    if "\xad" in raw and _SOFT.fullmatch(raw):
        raw = raw.replace("\xad", "")
    if (symbol := raw.lower() if _ENTITY.fullmatch(raw) else raw) in SYMBOLS:
        return SYMBOLS[symbol]
    if re.fullmatch(AMPERSANDS, raw):
        raw = re.sub("&amp;", "&", raw, flags=re.IGNORECASE)
    if raw in ("--", "---", "----"):
        return "--"
    if re.fullmatch(rf"{APOS}(?:[msd]|re|ve|ll)|n{APOS}t", raw, re.IGNORECASE):
        return re.sub(APOS, "'", raw).lower()
    if re.fullmatch("n[\u2018\x91]t", raw, re.IGNORECASE):
        return "n`t"
    brackets = BRACKETS if len(raw) == 1 else {"(": "-lrb-", ")": "-rrb-"}
    token = "".join(brackets.get(character, character) for character in raw.lower())
    return "..." if re.fullmatch(ELLIPSIS, token) else token.replace(" ", "\xa0")
