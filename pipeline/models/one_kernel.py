"""One kernel for what transformers computes in eight: the same functions, up to rounding."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

ACTIVATION_FIELDS = ("dense_act_fn", "activation_function", "hidden_act")
T5_NORMS = ("T5LayerNorm", "MT5LayerNorm")  # w * x / rms(x), as torch's rms_norm


def choose_gelu(config: Any) -> Any:
    """The configuration, with torch's own kernel of GELU's tanh approximation in the place of "gelu_new"."""
    for field in ACTIVATION_FIELDS:
        if getattr(config, field, None) == "gelu_new":
            setattr(config, field, "gelu_pytorch_tanh")
    return config


def fuse_norms(model: nn.Module) -> None:
    """T5's norms as torch's own kernel."""
    for module in model.modules():
        if type(module).__name__ in T5_NORMS:
            module.forward = partial(_rms_norm, module, module.forward)  # type: ignore[method-assign]


def _rms_norm(norm: Any, plain: Any, hidden: Tensor) -> Tensor:
    if hidden.dtype != norm.weight.dtype:
        computed: Tensor = plain(hidden)
        return computed
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
