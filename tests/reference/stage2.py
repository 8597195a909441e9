"""Stage 2's soft prompts, and transformers' own language model loss on them (paper, section 3.3).

Shapes: Q soft prompts, L tokens, P image tokens, I image width, H width of the language model. One sample at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.models.qformer_layer import QFormerShape
from tests.reference import qformer
from tests.reference.qformer import Weights
from tests.reference.stage1 import LN_VISION_EPS

IGNORED = -100  # label that transformers' losses pass over


def soft_prompts(weights: Weights, shape: QFormerShape, frozen_PI: Tensor, question: list[int] | None = None) -> Tensor:
    """The query rows, which see one another, the picture and the question, then the linear layer. [Q, H]."""
    image = qformer.layer_norm(weights, "ln_vision", frozen_PI, LN_VISION_EPS)
    ids = torch.tensor(question or [], dtype=torch.int64)
    mask = qformer.matching_mask(shape.num_query_tokens, torch.ones(len(ids), dtype=torch.bool))
    rows = qformer.encode(weights, shape, image, ids, mask)
    return qformer.linear(weights, "language_projection", rows[: shape.num_query_tokens])


def causal_loss_sum(model: Any, prompts_QH: Tensor, context: list[int], target: list[int]) -> Tensor:
    """Summed cross-entropy of every target token; the positions of soft prompts and context are ignored.

    In pre-training there is no context: BOS is a target.
    """
    embedded = model.get_input_embeddings()(torch.tensor(context + target))
    logits = model(inputs_embeds=torch.cat([prompts_QH, embedded])[None]).logits[0]
    first = len(prompts_QH) + len(context) - 1
    surprises = [-torch.log_softmax(logits[first + at], 0)[token] for at, token in enumerate(target)]
    return torch.stack(surprises).sum()


def transformers_causal_loss_sum(model: Any, prompts_QH: Tensor, context: list[int], target: list[int]) -> Tensor:
    """The same by transformers' own loss, which computes in fp32."""
    embedded = model.get_input_embeddings()(torch.tensor(context + target))
    labels = torch.tensor([IGNORED] * (len(prompts_QH) + len(context)) + target)
    output = model(inputs_embeds=torch.cat([prompts_QH, embedded])[None], labels=labels[None])
    loss: Tensor = output.loss * len(target)  # transformers gives the mean
    return loss


def seq2seq_loss_sum(model: Any, prompts_QH: Tensor, context: list[int], target: list[int]) -> Tensor:
    """transformers' own loss of the target, decoded from an encoder that reads the prompts and then the context."""
    embedded = model.get_input_embeddings()(torch.tensor(context))
    output = model(inputs_embeds=torch.cat([prompts_QH, embedded])[None], labels=torch.tensor(target)[None])
    loss: Tensor = output.loss * len(target)
    return loss


def loss_sums_in_sequence(
    model: Any, loss_sum: Any, prompts: Sequence[Tensor], texts: Sequence[tuple[list[int], list[int]]], end: int
) -> list[Tensor]:
    """Of pairs that follow one another, each one's own: what stands before its text is read as soft prompts are.

    `texts` are context and target of each; a later pair reads both of them, without the last `end` tokens of each.
    """
    before, sums = prompts[0][:0], []
    for prompts_QH, (context, target) in zip(prompts, texts, strict=True):
        before = torch.cat([before, prompts_QH])
        sums.append(loss_sum(model, before, context, target))
        whole = context[: len(context) - end] + target[: len(target) - end]
        before = torch.cat([before, model.get_input_embeddings()(torch.tensor(whole, dtype=torch.int64))])
    return sums


def all_answers_loss(
    loss_sums: list[list[Tensor]], counts: list[list[int]], source_weights: Sequence[float] | None = None
) -> Tensor:
    """Each answer's summed loss, times its count over all counts of its question, times the weight of its source; the
    sum of it over all answers, divided by the number of questions (ALBEF, BLIP, LAVIS)."""
    total = torch.zeros((), dtype=torch.float64)
    for place, (answers, of_each) in enumerate(zip(loss_sums, counts, strict=True)):
        for loss, count in zip(answers, of_each, strict=True):
            total = total + loss * (count / sum(of_each)) * (source_weights[place] if source_weights else 1.0)
    return total / len(loss_sums)
