"""The DeepSpeed engine: ZeRO policy from `ds_configs/`, everything else from the recipe."""

import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.config import Recipe
from pipeline.distributed import process_group
from pipeline.distributed.rehearsal import replaced
from pipeline.distributed.stopwatch import watch
from pipeline.training.optimizer import build_optimizer
from pipeline.training.sharding import partition
from pipeline.training.watchdog import collective_timeout_s

ROOT = Path(__file__).parents[2]


def resolve_ds_config(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """The complete DeepSpeed configuration of a run. Raises ValueError naming the file and field of a bad policy."""
    zero = _read_policy(recipe.run.zero)
    if recipe.run.layout == "sharded" and zero["stage"] != 3:
        raise ValueError(
            f"run.layout 'sharded': needs ZeRO-3, and run.zero is {str(recipe.run.zero)!r}; set "
            "run.zero=ds_configs/zero3.json"
        )
    if "zero_hpz_partition_size" in zero:
        size = zero["zero_hpz_partition_size"] = min(int(zero["zero_hpz_partition_size"]), world_size)
        if world_size % size:
            raise ValueError(
                f"run.zero {str(recipe.run.zero)!r}: zero_hpz_partition_size {size} does not divide {world_size} "
                "ranks; set it to the number of GPUs in a node"
            )
    # No fp16 / bf16 section: the bridge keeps fp32 master weights and autocasts, frozen towers hold their own dtype.
    return {
        "zero_optimization": zero,
        "train_batch_size": recipe.batch.global_size,
        "train_micro_batch_size_per_gpu": recipe.batch.micro_size,
        "gradient_accumulation_steps": recipe.batch.num_passes(world_size),
        "gradient_clipping": recipe.optimizer.max_gradient_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # offloaded, the bridge is small enough for torch's AdamW
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a micro batch
        **({"communication_data_type": "bf16"} if recipe.run.gradient_transport == "bf16" else {}),
    }


def _read_policy(path: Path) -> dict[str, Any]:
    """The `zero_optimization` section of a policy file, as DeepSpeed itself would take it."""
    from pydantic import ValidationError

    name = str(path)
    path = path if path.is_file() else ROOT / path  # the project's own policies, from any folder
    if not path.is_file():
        raise ValueError(f"run.zero {name!r}: no such file; ds_configs/ has the policies")
    try:
        policy = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"run.zero {name!r}: is not valid JSON ({error}); see ds_configs/") from error
    zero = policy.get("zero_optimization") if isinstance(policy, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise ValueError(
            f'run.zero {name!r}: is not a ZeRO policy; write {{"zero_optimization": {{"stage": 1, 2 or 3}}}}, as in '
            "ds_configs/"
        )
    foreign = sorted(set(policy) - {"zero_optimization"})
    if foreign:
        raise ValueError(f"run.zero {name!r}: {foreign[0]!r} is not part of a ZeRO policy; set it in the recipe")
    automatic = [name for name, value in zero.items() if value == "auto"]
    if automatic:
        raise ValueError(
            f"run.zero {name!r}: {automatic[0]} 'auto' works in transformers' Trainer alone; set a value, or remove it"
        )
    _tell_deepspeed_without_gpu()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise ValueError(
            f"run.zero {name!r}: {field} {fault['input']!r}: {fault['msg']}; see DeepSpeed's ZeRO options"
        ) from error
    return zero


def _tell_deepspeed_without_gpu() -> None:
    """Without a GPU, say so: else DeepSpeed looks for one when it is imported, and warns that it found none."""
    if process_group.device_name() == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def build_engine(task: nn.Module, recipe: Recipe, ds_config: dict[str, Any]) -> Any:
    """Wrap a stage's task: its parameters (the bridge alone) are sharded, averaged and stepped by DeepSpeed."""
    import deepspeed

    if process_group.device_name() == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce for CPU ranks at first use. It takes 90 s and a compiler,
        # and it serves one node only; gloo sends these few MB as well, between nodes too. (On a GPU this line would
        # probe every CUDA kernel of DeepSpeed, with a warning for each.)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    if recipe.run.layout == "sharded":
        partition(task.language_model, ds_config)  # type: ignore[arg-type]
    engine, *_ = deepspeed.initialize(
        model=task, optimizer=build_optimizer(task, recipe.optimizer), config=ds_config, dist_init_required=False
    )
    process_group.limit_waiting(collective_timeout_s(recipe.run.hang_deadline_s))
    watch(deepspeed.comm.comm.cdb)
    return engine


def _import_muon_uncompiled() -> None:
    """DeepSpeed asks of every optimizer whether it is Muon. Importing that loads torch's whole compiler: 2 s a rank."""
    from deepspeed.runtime import compiler

    with replaced(compiler, {"compile": lambda: compiler.dummy_decorator}):
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
