"""ITG, image-grounded text generation (paper, section 3.2). S scored tokens of a batch, V vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def itg_loss_sums(logits_SV: Tensor, labels_S: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token given what is before it, summed over tokens: with label smoothing, and without.

    smoothed = sum_s (1 - smoothing) * -log p(label_s) + smoothing * mean_v -log p(v). The second is only for logs: it
    has no gradient. Computed in fp32 at least. A caller divides by the tokens of all ranks and micro batches: the mean
    is then that of the joined batch.
    """
    smoothed, exact = _LossSums.apply(logits_SV, labels_S, smoothing)  # type: ignore[no-untyped-call]
    return smoothed, exact


class _LossSums(torch.autograd.Function):
    """Keeps the logits as they come, and a number of each row, where torch's own would keep log p. The gradient, p -
    wanted, is one pass over [S, V], where torch's own would make three such tensors."""

    @staticmethod
    def forward(context: Any, logits_SV: Tensor, labels_S: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        values_SV = _in_fp32(logits_SV)
        log_p_SV = functional.log_softmax(values_SV, dim=1)
        mean_S = log_p_SV.mean(dim=1) if smoothing else None  # beside the rest: sums would part a compiler's kernel
        exact_S1 = -log_p_SV.gather(1, labels_S[:, None])
        context.save_for_backward(logits_SV, labels_S, values_SV.gather(1, labels_S[:, None]) + exact_S1)
        context.smoothing = smoothing
        exact = exact_S1.sum()
        smoothed = (1 - smoothing) * exact - (0.0 if mean_S is None else smoothing * mean_S.sum())
        context.mark_non_differentiable(exact)
        return smoothed, exact

    @staticmethod
    def backward(context: Any, gradient: Tensor, _of_exact: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        logits_SV, labels_S, log_sums_S1 = context.saved_tensors
        smoothing, vocabulary = context.smoothing, logits_SV.shape[1]
        excess_SV = (_in_fp32(logits_SV) - log_sums_S1).exp() - smoothing / vocabulary
        of_label_S1 = gradient * (excess_SV.gather(1, labels_S[:, None]) - (1 - smoothing))
        gradient_SV = (gradient * excess_SV).to(logits_SV.dtype)
        return gradient_SV.scatter_(1, labels_S[:, None], of_label_S1.to(logits_SV.dtype)), None, None


def _in_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
