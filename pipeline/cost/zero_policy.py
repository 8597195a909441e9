"""The part of a ZeRO policy that decides memory and traffic; DeepSpeed's own values where the file has none."""

from dataclasses import dataclass
from typing import Any

SENT_BYTES = {None: 4, "fp32": 4, "fp16": 2, "bf16": 2}  # by DeepSpeed's communication_data_type
ALIGNMENT = 2  # elements; a group of parameters is padded to this many on each rank


@dataclass(frozen=True)
class ZeroPolicy:
    """Sizes count elements. `hpz_ranks` is 1 without a secondary copy of weights within nodes."""

    stage: int
    offloads_optimizer: bool
    reduce_buckets: int
    reduce_bucket_size: int
    prefetch_bucket_size: int
    max_live_parameters: int
    persistence_threshold: int
    hpz_ranks: int
    gradient_bytes: int  # of an element, as gradients are sent
    overlaps_backward: bool  # stages 1 and 2: gradients are sent during the backward pass


def read_policy(ds_config: dict[str, Any]) -> ZeroPolicy:
    """The policy of a resolved DeepSpeed configuration. Raises ValueError for options that are not counted."""
    zero = ds_config["zero_optimization"]
    if zero.get("offload_param", {}).get("device", "none") != "none":
        raise ValueError("run.zero: offload_param cannot be planned; plan without it, or measure a short run")
    stage = int(zero["stage"])
    overlaps = zero.get("overlap_comm")
    overlaps = stage == 3 if overlaps is None else overlaps
    # Stages 1 and 2 fill a second bucket while the first one is sent.
    buckets = (2 if overlaps and stage < 3 else 1) if zero.get("contiguous_gradients", True) else 0
    return ZeroPolicy(
        stage,
        zero.get("offload_optimizer", {}).get("device", "none") != "none",
        buckets,
        int(zero.get("reduce_bucket_size", 5e8)),
        int(zero.get("stage3_prefetch_bucket_size", 5e7)),
        int(zero.get("stage3_max_live_parameters", 1e9)),
        int(zero.get("stage3_param_persistence_threshold", 1e5)),
        int(zero.get("zero_hpz_partition_size", 1)),
        SENT_BYTES[ds_config.get("communication_data_type")],
        bool(overlaps) and stage < 3,
    )
