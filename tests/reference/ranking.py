"""BLIP's `rank_answer` in its plainest form: every answer alone, read with its prompt from the beginning."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.stage2 import causal_loss_sum, seq2seq_loss_sum


def best_answer(
    kind: str,
    model: Any,
    prompts_QH: Tensor,
    context: list[int],
    answers: Sequence[list[int]],
    num_candidates: int,
) -> int:
    """The place of the answer with the smallest summed loss, among those with the most likely first token.

    An answer is its token ids and its end. Of equal ones the first is taken.
    """
    loss_sum = causal_loss_sum if kind == "causal" else seq2seq_loss_sum
    with torch.no_grad():
        first = [float(loss_sum(model, prompts_QH, context, ids[:1])) for ids in answers]
        candidates = sorted(sorted(range(len(answers)), key=lambda place: first[place])[:num_candidates])
        return min(candidates, key=lambda place: float(loss_sum(model, prompts_QH, context, answers[place])))
