"""Captions and questions as BLIP-2 trains on them: lower case, without some punctuation, at most 50 words."""

import re

MAX_WORDS = 50
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(caption: str) -> str:
    """The caption as training uses it; evaluation prompts and references are never cleaned with this."""
    words = _PUNCTUATION.sub(" ", caption.lower()).split()
    return " ".join(words[:MAX_WORDS])


def clean_question(question: str) -> str:
    """The question as training uses it: as a caption, but what is left of a word that had punctuation stays one."""
    words = _PUNCTUATION.sub("", question.lower()).split()
    return " ".join(words[:MAX_WORDS])
