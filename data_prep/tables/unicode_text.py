"""Text that every encoder takes: JSON may hold halves of surrogate pairs, which UTF-8 and tokenizers refuse."""

import re

LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD in place of each half of a surrogate pair."""
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
