"""Stage 1's three losses over a whole batch, pair by pair (paper, section 3.2; public training code for the details).

Shapes: N pairs, Q queries, L text tokens (padded), P image tokens, I image width, E projection width, V vocabulary.
"""

import torch
from torch import Tensor

from pipeline.models.qformer_layer import QFormerShape
from pipeline.objectives.matching import MATCH
from tests.reference import qformer
from tests.reference.qformer import Weights

LN_VISION_EPS = 1e-5


def unit(row: Tensor) -> Tensor:
    return row / row.norm()


def smoothed_cross_entropy(logits_V: Tensor, label: int, smoothing: float) -> Tensor:
    """(1 - smoothing) on the label and smoothing spread evenly over all classes."""
    surprise_V = -torch.log_softmax(logits_V, dim=0)
    return (1 - smoothing) * surprise_V[label] + smoothing * surprise_V.mean()


def contrastive_loss(
    images_NQE: list[Tensor], texts_NE: list[Tensor], temperature: Tensor, image_ids: list[int], smoothing: float
) -> Tensor:
    """ITC. What a row is compared with (other ranks' features in a distributed run) gets no gradient."""
    count = len(image_ids)
    losses = []
    for i in range(count):
        image_to_text = torch.stack([(images_NQE[i] @ texts_NE[j].detach()).max() for j in range(count)]) / temperature
        text_to_image = torch.stack([(images_NQE[j].detach() @ texts_NE[i]).max() for j in range(count)]) / temperature
        positives = [j for j in range(count) if image_ids[j] == image_ids[i]]
        target = torch.full((count,), smoothing / count, dtype=image_to_text.dtype)
        target[positives] += (1 - smoothing) / len(positives)
        for logits in (image_to_text, text_to_image):
            losses.append(-(target * torch.log_softmax(logits, dim=0)).sum())
    return torch.stack(losses).mean()


def draw_negative(logits_N: Tensor, is_positive: list[bool], uniform_N: Tensor, rule: str) -> int:
    """A column that is no positive, with probability softmax(logits): the winner of a race of exponential clocks."""
    chances = torch.softmax(logits_N.detach(), dim=0) + (1e-4 if rule == "softmax_plus_epsilon" else 0.0)
    finish = [
        float("inf") if positive else float(-torch.log(uniform) / chance)
        for chance, positive, uniform in zip(chances, is_positive, uniform_N, strict=True)
    ]
    return finish.index(min(finish))


def matching_logits(weights: Weights, shape: QFormerShape, image_PI: Tensor, ids_L: Tensor, real_L: Tensor) -> Tensor:
    """ITM's two logits of one pair: the mean of those of its queries."""
    mask = qformer.matching_mask(shape.num_query_tokens, real_L)
    rows = qformer.encode(weights, shape, image_PI, ids_L, mask)
    return qformer.linear(weights, "itm_head", rows[: shape.num_query_tokens]).mean(dim=0)


def generation_logits(weights: Weights, shape: QFormerShape, image_PI: Tensor, ids_L: Tensor, real_L: Tensor) -> Tensor:
    """ITG's logits [L, V] of one pair, `ids_L` beginning with [DEC]; the head shares the word embeddings."""
    mask = qformer.generation_mask(shape.num_query_tokens, real_L)
    rows = qformer.encode(weights, shape, image_PI, ids_L, mask)[shape.num_query_tokens :]
    hidden = qformer.gelu(qformer.linear(weights, "qformer.language_head.transform", rows))
    hidden = qformer.layer_norm(weights, "qformer.language_head.layer_norm", hidden, shape.layer_norm_eps)
    return hidden @ weights["qformer.text_embeddings.word.weight"].T + weights["qformer.language_head.bias"]


def stage1_losses(
    weights: Weights,
    shape: QFormerShape,
    frozen_NPI: Tensor,
    ids_NL: Tensor,
    is_token_NL: Tensor,
    image_ids: list[int],
    uniform_2NN: Tensor,
    *,
    decode_token_id: int,
    smoothing: float,
    rule: str,
) -> dict[str, Tensor]:
    """`itc_loss`, `itm_loss`, `itg_loss` of the joined batch, with gradient to `weights`."""
    count, queries, temperature = len(image_ids), shape.num_query_tokens, weights["temperature"][0]
    images = [qformer.layer_norm(weights, "ln_vision", frozen_PI, LN_VISION_EPS) for frozen_PI in frozen_NPI]

    image_features, text_features = [], []
    for image, ids, real in zip(images, ids_NL, is_token_NL, strict=True):
        rows = qformer.encode(weights, shape, image, ids, qformer.contrastive_mask(queries, real))
        image_features.append(
            torch.stack([unit(qformer.linear(weights, "vision_proj", row)) for row in rows[:queries]])
        )
        text_features.append(unit(qformer.linear(weights, "text_proj", rows[queries])))  # [CLS]
    itc_loss = contrastive_loss(image_features, text_features, temperature, image_ids, smoothing)

    pairs = [(i, i, MATCH) for i in range(count)]
    for i in range(count):
        positive = [other == image_ids[i] for other in image_ids]
        image_to_text = torch.stack([(image_features[i] @ text).max() for text in text_features]) / temperature
        text_to_image = torch.stack([(image @ text_features[i]).max() for image in image_features]) / temperature
        if all(positive):
            continue  # one picture alone: nothing is a negative
        pairs.append((i, draw_negative(image_to_text, positive, uniform_2NN[0, i], rule), 1 - MATCH))
        pairs.append((draw_negative(text_to_image, positive, uniform_2NN[1, i], rule), i, 1 - MATCH))
    itm_losses = []
    for image, text, label in pairs:
        logits = matching_logits(weights, shape, images[image], ids_NL[text], is_token_NL[text])
        itm_losses.append(-torch.log_softmax(logits, dim=0)[label])

    itg_losses = []
    for image, ids, real in zip(images, ids_NL, is_token_NL, strict=True):
        decoded = torch.cat([torch.tensor([decode_token_id]), ids[1:]])
        logits = generation_logits(weights, shape, image, decoded, real)
        for place in range(1, int(real.sum())):
            itg_losses.append(smoothed_cross_entropy(logits[place - 1], int(ids[place]), smoothing))
    itg_loss = torch.stack(itg_losses).mean() if itg_losses else temperature * 0
    return {"itc_loss": itc_loss, "itm_loss": torch.stack(itm_losses).mean(), "itg_loss": itg_loss}
