"""ITM, image-text matching with hard negatives (paper, section 3.2). B pairs a rank, N pairs of all ranks."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

MATCH = 1  # class of a true pair; 0 is a mismatch
NONE = -100  # the label of a pair that is not counted


@torch.no_grad()
def hard_negatives(
    logits_BN: Tensor,
    is_positive_BN: Tensor,
    uniform_BN: Tensor,
    rule: Literal["softmax", "softmax_plus_epsilon"],
) -> Tensor:
    """For each row one column that is no positive, drawn with probability softmax(logits). int64 [B].

    `uniform_BN` in (0, 1) decides the draw (Gumbel maximum), so that the same numbers give the same negatives on any
    number of ranks, without a synchronisation. `softmax_plus_epsilon` is the older rule of the public weights:
    softmax + 1e-4, positives then set to 0. A row whose columns are all positives has no negative to give and gets
    column 0, a true pair, which is not to be counted (`labels`).
    """
    if rule == "softmax":
        log_weights = logits_BN.float().masked_fill(is_positive_BN, float("-inf"))
    else:
        log_weights = (logits_BN.float().softmax(dim=1) + 1e-4).log().masked_fill(is_positive_BN, float("-inf"))
    gumbel_BN = -torch.log(-torch.log(uniform_BN.clamp(1e-12, 1 - 1e-7)))
    return (log_weights + gumbel_BN).argmax(dim=1)


def labels(is_positive_BN: Tensor) -> Tensor:
    """Labels of B true pairs, each with a drawn one after it, and of B drawn ones: int64 [3B].

    Where the joined batch shows one image alone, nothing is a negative, on no rank: drawn pairs are then not counted.
    """
    pairs = is_positive_BN.shape[0]
    drawn = torch.where(is_positive_BN.all(), NONE, 1 - MATCH)
    labels_M = drawn.repeat(3 * pairs)
    labels_M[: 2 * pairs : 2] = MATCH
    return labels_M


def itm_loss(logits_M2: Tensor, labels_M: Tensor) -> Tensor:
    """Two-class cross-entropy of the logits averaged over queries; mean over the counted pairs of this rank.

    Every rank counts as many pairs: the mean of the ranks' losses is the loss of the joined batch.
    """
    return functional.cross_entropy(logits_M2, labels_M, ignore_index=NONE)


def itm_accuracy(logits_M2: Tensor, labels_M: Tensor) -> Tensor:
    """Share of counted pairs classed rightly. Scalar in [0, 1]; always answering "mismatch" gives 2/3."""
    return (logits_M2.argmax(dim=1) == labels_M).float().sum() / (labels_M != NONE).sum()
