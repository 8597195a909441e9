"""ITG, image-grounded text generation (paper, section 3.2). B texts, L tokens, V vocabulary."""

from torch import Tensor
from torch.nn import functional

IGNORED = -100  # label of a position that is not scored


def itg_loss_sum(logits_BLV: Tensor, ids_BL: Tensor, is_token_BL: Tensor, smoothing: float) -> Tensor:
    """Label-smoothed cross-entropy of each next token, summed over tokens; padding is not scored.

    Logits at position l predict token l+1 of ids ([DEC] w1 ... wn [SEP]); they come in fp32 or wider. The sum, so that
    a caller can divide by the tokens of all ranks and micro batches: the mean is then that of the joined batch.
    """
    labels = ids_BL[:, 1:].masked_fill(~is_token_BL[:, 1:], IGNORED)
    return functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="sum",
    )
