"""Cross-entropy of the tokens that a language model is scored on, summed, in fp32 at least.

Shapes: B texts, L tokens of the longest, T tokens of all, V vocabulary.
"""

from torch import Tensor
from torch.nn import functional

from pipeline.models.precision import at_least_fp32
from pipeline.tokens import Tokens

IGNORED = -100  # label of a position that is not scored


def padded_loss_sum(logits_BLV: Tensor, target: Tokens, weights_B: Tensor | None) -> Tensor:
    """Of logits at every place of the target; `weights_B` are factors on the sums of the texts."""
    labels_BL = target.ids.masked_fill(~target.is_token, IGNORED)
    logits_TV, labels_T = at_least_fp32(logits_BLV.flatten(0, 1)), labels_BL.flatten()
    if weights_B is None:
        return functional.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="sum")
    losses_T = functional.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="none")
    return (losses_T.view(labels_BL.shape).sum(dim=1) * weights_B).sum()


def packed_loss_sum(logits_TV: Tensor, target: Tokens, weights_B: Tensor | None) -> Tensor:
    """Of logits at its real tokens alone, text by text."""
    logits_TV, labels_T = at_least_fp32(logits_TV), target.ids.flatten().index_select(0, target.places().flat_R)
    if weights_B is None:
        return functional.cross_entropy(logits_TV, labels_T, reduction="sum")
    losses_T = functional.cross_entropy(logits_TV, labels_T, reduction="none")
    lengths_B = target.is_token.sum(dim=1)
    return (losses_T * weights_B.repeat_interleave(lengths_B, output_size=len(labels_T))).sum()
