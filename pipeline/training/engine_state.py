"""AdamW's state under any ZeRO stage, as whole fp32 tensors by the bridge's parameter names.

DeepSpeed's own checkpoints are pickles for one world size and one stage. Whole tensors load at any, and bit for bit.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.distributed import process_group

if TYPE_CHECKING:
    from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of AdamW's first and second moment


def _trained(engine: Any) -> Iterator[tuple[str, "nn.Parameter"]]:
    for name, parameter in engine.module.bridge.named_parameters():
        if parameter.requires_grad:  # all, but what a trained image encoder does not read
            yield name, parameter


def gather(engine: Any, keep: bool) -> tuple[dict[str, "Tensor"], dict[str, "Tensor"]]:
    """The bridge's fp32 weights by name, and its moments by `MOMENT.NAME`, on the host; empty unless `keep`.

    Collective: every rank calls it, the one that writes with `keep`. One parameter at a time, to need little memory.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    weights, moments = {}, {}
    for name, parameter in _trained(engine):
        whole = safe_get_full_fp32_param(parameter)
        if keep:
            weights[name] = whole.detach().to("cpu", copy=True)
        for moment in MOMENTS:
            whole = safe_get_full_optimizer_state(parameter, moment)
            if keep:
                moments[f"{moment}.{name}"] = whole.detach().to("cpu", copy=True)
    return weights, moments


def restore(engine: Any, moments: dict[str, "Tensor"] | None, step: int) -> None:
    """Set AdamW's state as after `step` steps; each rank takes its part of the moments (None: zero, as at first)."""
    import torch

    zero_optimizer = engine.optimizer
    inner, of_stage_3 = zero_optimizer.optimizer, hasattr(zero_optimizer, "fp32_partitioned_groups_flat")
    flat_parts = (
        zero_optimizer.fp32_partitioned_groups_flat if of_stage_3 else zero_optimizer.single_partition_of_fp32_groups
    )
    for flat in flat_parts:
        inner.state[flat] = {"step": torch.tensor(float(step))} | {name: torch.zeros_like(flat) for name in MOMENTS}
    if not of_stage_3:
        zero_optimizer._lazy_init_hp_params_optimizer_state()
    if moments is None:
        return
    for name, parameter in _trained(engine):
        for moment in MOMENTS:
            _set(parameter, moments[f"{moment}.{name}"], moment, of_stage_3)


def _set(parameter: Any, whole: "Tensor", moment: str, of_stage_3: bool) -> None:
    import torch
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not of_stage_3:
        safe_set_full_optimizer_state(parameter, whole.to(parameter.device), moment)
        return
    size = parameter.ds_tensor.ds_numel
    first = size * process_group.rank_in(parameter.ds_process_group)
    own = whole.flatten()[first : first + size]
    padded = torch.nn.functional.pad(own, (0, size - len(own)))  # DeepSpeed pads the last rank's part
    safe_set_local_optimizer_state(parameter, padded.to(parameter.ds_tensor.device), moment)
