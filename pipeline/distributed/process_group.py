"""Which rank this process is, and the start and end of the process group."""

import os
from typing import Any


def rank() -> int:
    """This process's rank; 0 when nothing launched it."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) if world_size() > 1 else "0")


def world_size() -> int:
    """Number of ranks; 1 when nothing launched this process."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1


def local_rank() -> int:
    """This process's number on its own node; selects the GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def rank_in(group: Any) -> int:
    """This process's rank in a part of the ranks."""
    import torch.distributed as dist

    return dist.get_rank(group)


def device_name() -> str:
    """`cuda:N` for this process's GPU, else `cpu`."""
    import torch

    return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def export_rank_variables() -> None:
    """Under srun, copy what SLURM's variables say into the launcher's, which torch and DeepSpeed read."""
    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(local_rank()))
    if "MASTER_ADDR" not in os.environ and int(os.environ.get("SLURM_NNODES", "1")) > 1:
        raise ValueError("MASTER_ADDR: is not set, and several nodes need it; set it to the first node")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")


def initialise(even_alone: bool = False) -> None:
    """Join the process group (gloo on CPU, NCCL on GPUs); a single rank only if `even_alone`, as DeepSpeed wants it.

    Raises ValueError in one line when the ranks cannot connect, as when another program uses the port.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized() or (world_size() == 1 and not even_alone):
        return
    export_rank_variables()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(device_name())
    if world_size() == 1:
        # A store of its own needs no port (torch's types leave HashStore out).
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    else:
        try:
            dist.init_process_group(backend)
        except dist.DistNetworkError as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise ValueError(
                f"MASTER_PORT {place}: the ranks cannot connect ({str(error).splitlines()[0]}); if another program "
                "uses the port, set another one with `deepspeed --master_port N`"
            ) from error


def shut_down() -> None:
    """Leave the process group, if any."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
