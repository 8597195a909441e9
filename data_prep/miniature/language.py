"""Collects the language of the drawn world: captions, questions with answers, and whether a caption is true."""

from data_prep.miniature.captions import describe, describe_fully
from data_prep.miniature.questions import Question, ask
from data_prep.miniature.truth import is_true

__all__ = ["Question", "ask", "describe", "describe_fully", "is_true"]
