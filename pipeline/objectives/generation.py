"""ITG, image-grounded text generation (paper, section 3.2). S scored tokens of a batch, V vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def itg_loss_sums(logits_SV: Tensor, labels_S: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token given what is before it, summed over tokens: with label smoothing, and without.

    smoothed = sum_s (1 - smoothing) * -log p(label_s) + smoothing * mean_v -log p(v). The second is only for logs: it
    has no gradient. Logits come in fp32 or wider. A caller divides by the tokens of all ranks and micro
    batches: the mean is then that of the joined batch.
    """
    smoothed, exact = _LossSums.apply(logits_SV, labels_S, smoothing)  # type: ignore[no-untyped-call]
    return smoothed, exact


class _LossSums(torch.autograd.Function):
    """The gradient in one pass over [S, V], p - wanted, where torch's own would make three such tensors."""

    @staticmethod
    def forward(context: Any, logits_SV: Tensor, labels_S: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        log_p_SV = functional.log_softmax(logits_SV, dim=1)
        context.save_for_backward(log_p_SV, labels_S)
        context.smoothing = smoothing
        mean = log_p_SV.mean(dim=1).sum() if smoothing else 0.0
        exact = -log_p_SV.gather(1, labels_S[:, None]).sum()
        smoothed = (1 - smoothing) * exact - smoothing * mean
        context.mark_non_differentiable(exact)
        return smoothed, exact

    @staticmethod
    def backward(context: Any, gradient: Tensor, _of_exact: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        log_p_SV, labels_S = context.saved_tensors
        smoothing = context.smoothing
        gradient_SV = gradient * (log_p_SV.exp() - smoothing / log_p_SV.shape[1])
        label_S1 = gradient_SV.gather(1, labels_S[:, None]) - gradient * (1 - smoothing)
        return gradient_SV.scatter_(1, labels_S[:, None], label_S1), None, None
