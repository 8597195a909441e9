"""Replaces halves of surrogate pairs in texts: JSON may hold them, but UTF-8 and tokenizers refuse them."""

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair."""
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
