"""ITG, image-grounded text generation (paper, section 3.2). S scored tokens of a batch, V vocabulary."""

from torch import Tensor
from torch.nn import functional


def itg_loss_sums(logits_SV: Tensor, labels_S: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token given what is before it, summed over tokens: with label smoothing, and without.

    smoothed = sum_s (1 - smoothing) * -log p(label_s) + smoothing * mean_v -log p(v). The second is only for logs: it
    has no gradient. Logits come in fp32 or wider. A caller divides by the tokens of all ranks and micro
    batches: the mean is then that of the joined batch.
    """
    surprise_SV = -functional.log_softmax(logits_SV, dim=1)
    exact = surprise_SV.gather(1, labels_S[:, None]).sum()
    smoothed = exact if smoothing == 0 else (1 - smoothing) * exact + smoothing * surprise_SV.mean(dim=1).sum()
    return smoothed, exact.detach()
