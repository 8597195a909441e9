"""ITC, image-text contrastive learning (paper, section 3.2). B pairs a rank, N of all ranks, Q queries, E width."""

import torch
from torch import Tensor
from torch.nn import functional


def similarities(image_BQE: Tensor, text_NE: Tensor) -> Tensor:
    """Cosine of each image with each text: the maximum over the image's queries. Unit-length inputs. [B, N].

    One matrix product over [B*Q, E] x [E, N], never in a lower precision than its inputs': the temperature magnifies
    its errors.
    """
    batch, queries, width = image_BQE.shape
    with torch.autocast(image_BQE.device.type, enabled=False):
        scores: Tensor = image_BQE.reshape(batch * queries, width) @ text_NE.T
    return scores.view(batch, queries, -1).max(dim=1).values  # amax would divide gradients by the number of maxima


def targets(ids_B: Tensor, all_ids_N: Tensor, first_row: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """Soft targets [B, N]: (1 - smoothing) spread evenly over the pairs of the same image id, smoothing / N everywhere.

    Row i's own pair is column first_row + i; with unique ids this is ordinary label smoothing.
    """
    same_BN = (ids_B[:, None] == all_ids_N[None, :]).to(dtype)
    rows = torch.arange(len(ids_B), device=ids_B.device)
    same_BN[rows, first_row + rows] = 1.0
    return (1 - smoothing) * same_BN / same_BN.sum(dim=1, keepdim=True) + smoothing / len(all_ids_N)


def itc_loss(image_to_text_BN: Tensor, text_to_image_BN: Tensor, temperature: Tensor, targets_BN: Tensor) -> Tensor:
    """Mean of the two cross-entropies, mean over this rank's B rows.

    loss = -1/2 mean_i sum_j t_ij (log softmax_j(i2t_ij / temp) + log softmax_j(t2i_ij / temp)). Across ranks: the
    columns are all ranks' features, gathered without gradient (this rank's own too, so that the gradient does not
    depend on the number of ranks); the mean of the ranks' losses is the loss of the joined batch.
    """
    image_to_text = functional.cross_entropy(image_to_text_BN / temperature, targets_BN)
    text_to_image = functional.cross_entropy(text_to_image_BN / temperature, targets_BN)
    return (image_to_text + text_to_image) / 2


def in_batch_accuracy(image_to_text_BN: Tensor, first_row: int) -> Tensor:
    """Share of this rank's images whose own text scores highest among all texts. Scalar in [0, 1]."""
    rows = torch.arange(len(image_to_text_BN), device=image_to_text_BN.device)
    return (image_to_text_BN.argmax(dim=1) == first_row + rows).float().mean()
