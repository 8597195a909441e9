"""The DeepSpeed engine: ZeRO policy from `ds_configs/`, everything else from the recipe."""

import json
from typing import Any

from torch import nn

from pipeline.config import Recipe
from pipeline.distributed.stopwatch import watch
from pipeline.training.optimizer import build_optimizer


def resolve_ds_config(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """The complete DeepSpeed configuration of a run. Raises ValueError when the policy file is missing or says more."""
    path = recipe.run.zero
    if not path.is_file():
        raise ValueError(f"run.zero {str(path)!r}: no such file; the shipped policies are in ds_configs/")
    try:
        policy = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"run.zero {str(path)!r}: not valid JSON ({error})") from error
    if recipe.run.layout == "sharded" and policy.get("zero_optimization", {}).get("stage") != 3:
        raise ValueError(
            f"run.layout 'sharded': needs ZeRO-3; set run.zero to ds_configs/zero3.json, not {str(path)!r}"
        )
    foreign = sorted(set(policy) - {"zero_optimization"})
    if foreign:
        raise ValueError(f"run.zero {str(path)!r}: {foreign[0]!r} is not ZeRO policy; set it in the recipe")
    # No fp16 / bf16 section: the bridge keeps fp32 master weights and autocasts, frozen towers hold their own dtype.
    return {
        **policy,
        "train_batch_size": recipe.batch.global_size,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_size,
        "gradient_accumulation_steps": recipe.batch.num_passes(world_size),
        "gradient_clipping": recipe.optimizer.max_gradient_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded, the bridge is small enough for torch's AdamW
        "steps_per_print": 10**9,
    }


def build_engine(task: nn.Module, recipe: Recipe, ds_config: dict[str, Any]) -> Any:
    """Wrap a stage's task: its parameters (the bridge alone) are sharded, averaged and stepped by DeepSpeed."""
    import deepspeed

    # DeepSpeed would compile a shared-memory all-reduce for CPU ranks at first use: a minute and a compiler, for
    # gradients of a few MB that gloo carries as well, between nodes too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=task, optimizer=build_optimizer(task, recipe.optimizer), config=ds_config, dist_init_required=False
    )
    watch(deepspeed.comm.comm.cdb)
    return engine
