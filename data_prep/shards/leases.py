"""Leases: several workers share a folder, and only one of them at a time works on a shard.

- A lease is a file that names its owner. It is written under a temporary name and then hard-linked to its own name.
  Only one worker can succeed with that, on network file systems too.
- A thread of the owner touches the file while the work lasts: its heartbeat.
- A lease is stale when its owner was a process of this machine that has ended, or when the heartbeat has not changed
  for `ttl_s`. Each worker measures that with its own monotonic clock: clocks of two machines are never compared.
- Another worker may steal a stale lease. For a short moment, two workers may then both believe that they hold it.
  Therefore both must write the same bytes, and put them in place atomically.
"""

import errno
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.files import PARTIAL_SUFFIX, naming_full_disk

HEARTBEATS_PER_TTL = 4
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


class Lease:
    """A lease that this worker holds: a context manager that keeps it alive and gives it back. See `Leases.take`."""

    def __init__(self, path: Path, token: str, ttl_s: float) -> None:
        self.path, self.token = path, token
        self._interval_s = ttl_s / HEARTBEATS_PER_TTL
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def held(self) -> bool:
        """Whether this worker still holds the lease; False after another worker has stolen it."""
        return _read_owner(self.path).get("token") == self.token

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self.held():
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(self._interval_s):
            try:
                if self.held():
                    os.utime(self.path)
            except OSError:
                continue  # the file system does not answer for a moment; the next heartbeat tries again


class Leases:
    """The leases of one folder, as one worker sees them. It remembers when the heartbeats of the others changed."""

    def __init__(self, folder: Path, ttl_s: float) -> None:
        self.folder, self.ttl_s = folder, ttl_s
        self._seen: dict[str, tuple[str, int, float]] = {}

    def take(self, name: str) -> Lease | None:
        """The lease of the work `name`, or None while another worker holds it.

        Raises ValueError when a folder has its name: it is not removed, because its content is unknown.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.lease"
        if path.is_dir() and not path.is_symlink():
            raise ValueError(f"{path}: is a folder, but the lease of a shard must have this name; move it away")
        if os.path.lexists(path) and (self._beats(path) or not self._remove_stale(path)):
            return None
        token = uuid.uuid4().hex
        temporary = self.folder / f".{name}.{token}{PARTIAL_SUFFIX}"
        try:
            with naming_full_disk(path):
                with temporary.open("x", encoding="utf-8") as file:
                    json.dump(
                        {"token": token, "host": _host(), "pid": os.getpid(), "started": _start_time(os.getpid())}, file
                    )
                _link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            return None  # another worker was faster; the holder of a lease also removes temporary files of the others
        finally:
            temporary.unlink(missing_ok=True)
        return Lease(path, token, self.ttl_s)

    def clear(self, name: str) -> None:
        """Remove the lease of finished work whose owner died before it could give the lease back."""
        path = self.folder / f"{name}.lease"
        if os.path.lexists(path) and not path.is_dir() and not self._beats(path):
            self._remove_stale(path)

    def _beats(self, path: Path) -> bool:
        """Whether the owner of the lease may still be alive."""
        owner = _read_owner(path)
        pid = owner.get("pid")
        if owner.get("host") == _host() and isinstance(pid, int) and owner.get("started") != _start_time(pid):
            return False
        try:
            beat = path.lstat().st_mtime_ns
        except FileNotFoundError:
            return False
        token, now = str(owner.get("token")), time.monotonic()
        known = self._seen.get(path.name)
        if known is None or known[:2] != (token, beat):
            self._seen[path.name] = (token, beat, now)
            return True
        return now - known[2] < self.ttl_s

    def _remove_stale(self, path: Path) -> bool:
        """Move a stale lease away. False when another worker was faster; its new lease is then put back."""
        stale = _read_owner(path).get("token")
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        try:
            if _read_owner(aside).get("token") == stale:
                return True
            _link(aside, path)
        except (FileExistsError, FileNotFoundError):
            pass  # another worker has taken it again, or its new holder has removed it
        finally:
            aside.unlink(missing_ok=True)
        return False


def _link(source: Path, path: Path) -> None:
    """A second name for a file, which must not exist. Raises FileExistsError.

    Where the file system has no hard links, the file is made empty and then filled: for that moment its lease has an
    owner whose name is unknown.
    """
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("x", encoding="utf-8") as file:
            file.write(source.read_text("utf-8"))


def _read_owner(path: Path) -> dict[str, object]:
    """What the lease says about its owner; {} when it is missing, damaged, or not a regular file."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _host() -> str:
    """This machine, its present boot, and this process namespace: inside them a process number means one process."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return " ".join(
        [
            socket.gethostname(),
            boot.read_text(encoding="utf-8").strip() if boot.exists() else "",
            str(namespace.readlink()) if namespace.is_symlink() else "",
        ]
    )


def _start_time(pid: int) -> str | None:
    """When process `pid` started, in ticks of the kernel (process numbers are reused); None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    # A zombie has ended, but its parent has not read its exit code.
    return None if fields[0] in ("Z", "X") else fields[19]
