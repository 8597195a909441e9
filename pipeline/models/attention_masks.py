"""Which rows may attend to which: the three self-attention masks of stage 1 (paper, figure 2). True = may attend.

Queries see queries in all three. ITC: text sees text only, so queries and text are run apart. ITM: all see all.
ITG: text sees all queries and itself up to its own position; queries do not see text. B batch, Q queries, L tokens.
And the mask of padding of a T5.
"""

import torch
from torch import Tensor

from pipeline.models.precision import for_products
from pipeline.tokens import Tokens


def text_only(is_token_BL: Tensor) -> Tensor:
    """ITC's text pass: every real token sees every real token. [B, 1, 1, L]."""
    return is_token_BL[:, None, None, :]


def queries_and_text(num_queries: int, is_token_BL: Tensor) -> Tensor:
    """ITM: all queries and all real tokens see one another. [B, 1, 1, Q+L]."""
    queries_BQ = is_token_BL.new_ones((is_token_BL.shape[0], num_queries))
    return torch.cat([queries_BQ, is_token_BL], dim=1)[:, None, None, :]


def causal_after_queries(num_queries: int, is_token_BL: Tensor) -> Tensor:
    """ITG: a token sees all queries, then the real tokens up to itself. [B, 1, L, Q+L]."""
    batch, length = is_token_BL.shape
    queries_BLQ = is_token_BL.new_ones((batch, length, num_queries))
    earlier_LL = torch.ones((length, length), dtype=torch.bool, device=is_token_BL.device).tril()
    return torch.cat([queries_BLQ, earlier_LL & is_token_BL[:, None, :]], dim=2)[:, None]


def as_bias(mask: Tensor, rows: Tensor) -> Tensor:
    """The mask as what attention adds to its logits, in the products' number format: made once, where each layer's
    attention would make it of the mask anew."""
    return for_products(torch.zeros_like(mask, dtype=rows.dtype).masked_fill(~mask, float("-inf")))


def hiding_padding(mask_BN: Tensor, context: Tokens, dtype: torch.dtype) -> Tensor | None:
    """The mask as T5 itself makes it, [B, 1, 1, N]: it would first ask the device whether there is padding.

    None where the context has none.
    """
    if context.count == context.ids.numel():
        return None
    hidden_BN = torch.zeros_like(mask_BN, dtype=dtype).masked_fill(mask_BN == 0, torch.finfo(dtype).min)
    return hidden_BN[:, None, None, :]
