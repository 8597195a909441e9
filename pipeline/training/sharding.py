"""`run.layout: sharded`: a frozen language model from the host memory of rank 0 to a part on every rank (ZeRO-3)."""

import copy
from typing import Any

import torch
from torch import nn

from pipeline.distributed import process_group
from pipeline.distributed.first_rank import copy_from_first_rank, from_first_rank


def partition(model: nn.Module, ds_config: dict[str, Any]) -> None:
    """Send each rank its part of rank 0's model, one tensor after the other: no GPU ever holds more than one whole.

    On the other ranks the model has shapes alone (torch's meta device). Collective.
    """
    import deepspeed

    _follow_first_rank(model)
    device = process_group.device_name()
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, copy_from_first_rank(buffer.to(device)))
    deepspeed.init_distributed(dist_init_required=False)  # it takes over the group that is there
    # DeepSpeed moves each parameter to the device, takes rank 0's content there, and keeps a part.
    deepspeed.zero.Init(module=model, config_dict_or_path=copy.deepcopy(ds_config))


def _follow_first_rank(model: nn.Module) -> None:
    """Where the model has shapes alone, give it parameters and buffers of rank 0's shapes, types and ties.

    They lie in host memory, and nobody writes there: the system gives untouched memory no pages.
    """
    parameters = list(model.named_parameters(remove_duplicate=False))
    place = {id(parameter): number for number, (_, parameter) in reversed(list(enumerate(parameters)))}
    own = [(name, place[id(each)], each.shape, each.dtype) for name, each in parameters]
    buffers = [(name, each.shape, each.dtype) for name, each in model.named_buffers(remove_duplicate=False)]
    described = from_first_rank((own, buffers))
    if process_group.rank() == 0:
        return
    made: dict[int, nn.Parameter] = {}
    for name, number, shape, dtype in described[0]:
        if number not in made:
            made[number] = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, made[number])
    for name, shape, dtype in described[1]:
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, torch.empty(shape, dtype=dtype))
