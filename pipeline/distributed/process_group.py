"""Which rank this process is, and the start and end of the process group."""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.distributed import device

log = logging.getLogger(__name__)
SILENT_S = 20.0  # before it is said that ranks are missing
JOIN_S = 600.0  # in which all ranks must have started
LEAVE_S = 10.0  # in which all ranks must have read why they end
DAY_S = 86_400.0  # ranks of an evaluation may end hours apart
_GROUPS: dict[str, Any] = {}  # as torch's default group, of the process; and the store that all ranks read
COLLECTIVES_KEPT = 2000  # the last ones of each rank, by torch's flight recorder
FAULT = "fault"  # in the store: the number of a rank that has failed


LOST = (  # how gloo and NCCL say that the process at the other end is gone
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("remote process exit", "ncclRemoteError"),
)


class LostRankError(ValueError):
    """Another rank ended in the midst of a collective. It may be this rank alone that learns of it, and prints it."""


class StoppedWhileJoiningError(Exception):
    """A signal came while this rank waited for the others."""


def rank() -> int:
    """This process's rank; 0 when nothing launched it."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) if world_size() > 1 else "0")


def world_size() -> int:
    """Number of ranks; 1 when nothing launched this process."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "SLURM_STEP_ID" not in os.environ:
        return 1
    # In the shell that salloc opens, SLURM_NTASKS is the allocation's: the shell's own step has one task.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))


def local_rank() -> int:
    """This process's number on its own node; selects the GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def rank_in(group: Any) -> int:
    """This process's rank in a part of the ranks."""
    import torch.distributed as dist

    return dist.get_rank(group)


def device_name() -> str:
    """`cuda:N` for this process's GPU, else `cpu`. Raises DeviceError when a GPU was allotted but does not work."""
    return device.choose(local_rank())


def export_rank_variables() -> None:
    """Under srun, copy what SLURM's variables say into the launcher's, which torch and DeepSpeed read."""
    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(local_rank()))
    if "MASTER_ADDR" not in os.environ and int(os.environ.get("SLURM_NNODES", "1")) > 1:
        raise ValueError("MASTER_ADDR: is not set, and several nodes need it; set it to the first node")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")


def initialise(even_alone: bool = False, timeout_s: float = DAY_S, stopped: Callable[[], bool] | None = None) -> None:
    """Join the process group (gloo on CPU, NCCL on GPUs); a single rank only if `even_alone`, as DeepSpeed wants it.

    A collective that lasts `timeout_s` ends its rank. Raises ValueError in one line when the ranks cannot connect, as
    when another program uses the port; DeviceError, on every rank, when one of them has no working GPU; and
    StoppedWhileJoiningError as soon as `stopped` says so, while it waits for other ranks.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized() or (world_size() == 1 and not even_alone):
        return
    export_rank_variables()
    # A store of its own needs no port (torch's types leave HashStore out).
    store = dist.HashStore() if world_size() == 1 else _hearing_signals(_connect, stopped)  # type: ignore[attr-defined]
    name = _agree_on_device(store, stopped)
    if name != "cpu":
        torch.cuda.set_device(name)
        # DeepSpeed takes this number for the GPU's: here it must be that of a GPU which this process sees.
        os.environ["LOCAL_RANK"] = name.removeprefix("cuda:")
        # Else a monitor of NCCL's ends a process whose NCCL thread is stuck for 8 minutes, before any deadline of ours.
        os.environ.setdefault("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(int(timeout_s)))
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(COLLECTIVES_KEPT))
    timeout = timedelta(seconds=timeout_s)
    store.set_timeout(timeout)
    _GROUPS["store"] = store
    backend = "gloo" if name == "cpu" else "nccl"
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
    if backend == "nccl" and world_size() > 1:
        _GROUPS["host"] = dist.new_group(backend="gloo", timeout=timeout)


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """One line, not a traceback, where another rank has ended: one that is killed can say nothing itself.

    Raises LostRankError.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST):
            raise
        raise LostRankError(
            f"rank {rank()} of {world_size()}: another rank has ended; its own output says why. If it says nothing, it "
            "was killed, as by signal 9 when memory runs out: use fewer workers and smaller batches, or give the job "
            "more memory"
        ) from error


def host_group() -> Any:
    """A group whose collectives take tensors of the host, so that no GPU is waited for. None: the default group."""
    return _GROUPS.get("host")


def write_last_collectives(path: Path) -> None:
    """The last collectives of this rank as torch's flight recorder has them: JSON, with the state of each."""
    import torch.distributed as dist
    from torch._C import _distributed_c10d

    recorder: Any = _distributed_c10d  # torch's types leave out what gloo's recorder has
    if dist.is_initialized():
        on_gpu = dist.get_backend() == "nccl"
        path.write_bytes(recorder._dump_nccl_trace_json() if on_gpu else recorder._dump_fr_trace_json())


def tell_fault() -> None:
    """Tell the others that this rank has failed, without waiting for them."""
    if is_initialised() and world_size() > 1:
        _GROUPS["store"].set(FAULT, str(rank()))


def told_fault() -> int | None:
    """The rank that told of a fault, if one did. Asks rank 0's process, and waits for no other."""
    if not (is_initialised() and world_size() > 1 and _GROUPS["store"].check([FAULT])):
        return None
    return int(_GROUPS["store"].get(FAULT))


def _connect() -> Any:
    """The store that rank 0 serves and every rank reads."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", rank(), world_size(), timeout=timedelta(seconds=JOIN_S)))
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"MASTER_PORT {place}: the ranks cannot connect ({str(error).splitlines()[0]}); if another program "
            "uses the port, set another one with `deepspeed --master_port N`"
        ) from error
    return store


def _hearing_signals(wait: Callable[[], Any], stopped: Callable[[], bool] | None) -> Any:
    """What `wait` returns or raises. It runs in a thread: no signal would be heard in the midst of torch's code."""
    ended: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((wait(), None))
        except BaseException as error:  # raised again below
            ended.append((None, error))

    thread = threading.Thread(target=run, name="joining", daemon=True)
    thread.start()
    told = time.monotonic() + SILENT_S
    while thread.is_alive():
        thread.join(0.2)
        if stopped is not None and stopped():
            raise StoppedWhileJoiningError
        if thread.is_alive() and time.monotonic() > told:
            told = float("inf")
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            log.warning("rank %d of %d: waiting for the other ranks at %s", rank(), world_size(), place)
    [(value, error)] = ended
    if error is not None:
        raise error
    return value


def _agree_on_device(store: Any, stopped: Callable[[], bool] | None) -> str:
    """This rank's device. Raises DeviceError on every rank alike: gloo's ranks would wait for NCCL's for ever."""
    try:
        name, fault = device_name(), ""
    except device.DeviceError as error:
        name, fault = "none", str(error)
    store.set(f"device/{rank()}", json.dumps([name.partition(":")[0], socket.gethostname(), fault]))
    told = _hearing_signals(lambda: store.multi_get([f"device/{each}" for each in range(world_size())]), stopped)
    kinds, hosts, faults = zip(*map(json.loads, told), strict=True)
    broken = [each for each, text in enumerate(faults) if text]
    if broken or len(set(kinds)) > 1:
        _leave_last(store)
    if broken:
        first = broken[0]
        raise device.DeviceError(
            f"rank {first} on {hosts[first]} ({len(broken)} of {world_size()} ranks): {faults[first]}"
        )
    if len(set(kinds)) > 1:
        cpu, gpu = kinds.index("cpu"), kinds.index("cuda")
        raise device.DeviceError(
            f"rank {cpu} on {hosts[cpu]}: computes on the CPU, and rank {gpu} on {hosts[gpu]} on a GPU; give every "
            "rank a GPU, or none"
        )
    return name


def _leave_last(store: Any) -> None:
    """Rank 0 serves the store: it waits until every rank has read what it is about to end with."""
    store.set(f"read/{rank()}", "")
    if rank() == 0:
        with suppress(RuntimeError):  # one that was killed meanwhile reads no more
            store.wait([f"read/{each}" for each in range(world_size())], timedelta(seconds=LEAVE_S))


def limit_waiting(timeout_s: float) -> None:
    """The time that a collective may last, in every group: also in those that DeepSpeed makes, with torch's default."""
    import torch.distributed as dist

    core: Any = dist.distributed_c10d
    set_timeout = getattr(dist, "set_timeout", None) or core._set_pg_timeout  # torch 2.11 lacks the first name
    for group in list(core._world.pg_map):
        set_timeout(timedelta(seconds=timeout_s), group)


def is_initialised() -> bool:
    """Whether this process has joined a group. Answers at once where torch was never imported."""
    return "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()


def shut_down() -> None:
    """Leave the process group, if any, after a clean end of every rank."""
    if is_initialised():
        import torch.distributed as dist

        dist.destroy_process_group()


def leave_after_fault(code: int, at_once: bool = False) -> int:
    """The end of a rank that has failed. Returns the exit code; under NCCL the process ends here, all output written.

    There, leaving the group would wait for the other ranks, which wait for this one. `at_once` is the same where Python
    would wait at its end for processes that cannot end.
    """
    if at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if is_initialised():
        import torch.distributed as dist

        if dist.get_backend() == "nccl":
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    shut_down()
    return code
