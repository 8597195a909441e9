"""Captions and questions as BLIP-2 trains on them: lower case, without some punctuation, at most 50 words.

Shared with data_prep, which names and drops captions that training would pass over.
"""

import re
from typing import TypeGuard

MAX_WORDS = 50
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON may hold it, tokenizers refuse it
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a text that every tokenizer takes, and not blank."""
    return isinstance(value, str) and bool(value.strip()) and not _LONE_SURROGATE.search(value)


def has_words(caption: object) -> TypeGuard[str]:
    """Whether something is a caption to train on: a text of which a letter or digit is left when it is cleaned."""
    return is_text(caption) and any(map(str.isalnum, clean_caption(caption)))


def clean_caption(caption: str) -> str:
    """The caption as training uses it; evaluation prompts and references are never cleaned with this."""
    words = _PUNCTUATION.sub(" ", caption.lower()).split()
    return " ".join(words[:MAX_WORDS])


def clean_question(question: str) -> str:
    """The question as training uses it: as a caption, but what is left of a word that had punctuation stays one."""
    words = _PUNCTUATION.sub("", question.lower()).split()
    return " ".join(words[:MAX_WORDS])
