"""A memory limit of the kernel's own for processes of a test: what takes more is killed, as by SLURM or docker."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT = 32 << 20  # bytes
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
FILES = {
    V1: {"memory.limit_in_bytes": LIMIT, "memory.memsw.limit_in_bytes": LIMIT},
    V2: {"memory.max": LIMIT, "memory.swap.max": 0},
}
"""Of both versions of cgroups: the limits of memory and of swap, which a machine may be without."""


@contextmanager
def memory_group() -> Iterator[Path]:
    """A group of LIMIT bytes; skips the test where none may be made."""
    root = V1 if (V1 / "cgroup.procs").exists() else V2
    group = root / f"blip2-test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        try:
            for number, (name, value) in enumerate(FILES[root].items()):
                if number == 0 or (group / name).exists():
                    (group / name).write_text(str(value))
        except OSError:
            group.rmdir()
            raise
    except OSError as error:
        pytest.skip(f"cannot limit memory: {error}")
    try:
        yield group
    finally:
        for _ in range(100):  # a killed process is a member until it has ended
            if not (group / "cgroup.procs").read_text():
                break
            time.sleep(0.1)
        group.rmdir()


def use_up_memory(group: Path) -> None:
    """Put this process into the group, and take memory until the kernel kills it."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    taken = bytearray(4 * LIMIT)
    raise AssertionError(f"{len(taken)} bytes are taken, and this process lives")
