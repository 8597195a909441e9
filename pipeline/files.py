"""Files that appear whole or not at all, the digests that identify them, and whole-file JSON that is validated."""

import difflib
import errno
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
PARTIAL_SUFFIX = ".partial"
NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS)  # CIFS and some FUSE file systems
LARGEST_JSON = 1 << 30  # bytes; the manifest of 13,000 shards has 10 MB. A sparse file may claim more than memory holds
LARGEST_FOREIGN = 8 << 30  # of files of published sets; GQA's largest one has 1 GB
LONGEST_LINE = 1 << 20  # bytes
UNKNOWN = "extra_forbidden"  # pydantic's name of the fault that a field is not known
Content = TypeVar("Content")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """The sha256 of settings as JSON with sorted keys: equal settings have equal digests."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_whole(path: Path, most_bytes: int = LARGEST_JSON) -> bytes:
    """The bytes of a file that is read at once. Raises ValueError when it is larger, or no regular file.

    A pipe would be waited for, and a device has no end.
    """
    if not path.is_file():
        raise ValueError("is not a regular file" if os.path.lexists(path) else "no such file")
    if (size := path.stat().st_size) > most_bytes:
        raise ValueError(f"has {size} bytes, more than any such file")
    return path.read_bytes()


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file. One of more than LONGEST_LINE bytes is cut after the next byte; `check_line` refuses it.

    Raises ValueError for what is no regular file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: is not a regular file" if os.path.lexists(path) else f"{path}: no such file")
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            yield line
            while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE + 1)


def check_line(line: bytes) -> None:
    """Raises ValueError for a line that `read_lines` cut."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"is longer than {LONGEST_LINE} bytes")


def check_target(path: Path) -> None:
    """Make the folder of a file that is to be written. Raises ValueError when something else than a file has its name.

    Call it before long work, so that a wrong path costs nothing.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a regular file; name another output")
    path.parent.mkdir(parents=True, exist_ok=True)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, synced to the disk. Raises ValueError as `replacing` does."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; it takes the name `path`, synced, when the block ends without an error.

    After an error the temporary file is removed and `path` is as it was. After kill -9 the temporary file is left;
    `remove_partials` removes it. Raises ValueError when the disk is full or `path` is not a regular file.
    """
    check_target(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with naming_full_disk(path):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raises ValueError with the path of what is written when the disk is full: the error of a write names no file."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "os error 28" not in str(error):  # safetensors' own name for it
            raise
        raise ValueError(f"{path}: the disk is full; free space, run again") from error


def open_lock(path: Path) -> BinaryIO:
    """The file at the path of a lock, made where there is none, its content kept; `lock_file` takes it.

    Raises ValueError for a symlink, whose target is not ours, and for a pipe or a device.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    refused = ValueError(f"{path}: is not a regular file, and a lock is; remove it")
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise refused from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return io.FileIO(descriptor, "r+")


def lock_file(file: IO[Any] | int, path: Path, wait: bool = False) -> None:
    """Take an exclusive flock, that of `path`. Raises BlockingIOError when another process holds it, unless `wait`.

    A file system without locks, as Lustre mounted without `-o flock`, is a warning: the work goes on.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "%s: this file system has no locks (%s); make sure that only one process works there, or mount it with "
            "locks (Lustre: -o flock)",
            *(path, error.strerror),
        )


def remove_partials(path: Path) -> None:
    """Remove what killed writers of this file left half written. Only the holder of its lock or lease may call this."""
    for left in path.parent.glob(f".{path.stem}.*{PARTIAL_SUFFIX}"):
        left.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until a file that a library wrote is on the disk. It gets the mode of files that Python makes: those of
    safetensors can be read by their owner alone."""
    path.chmod(0o666 & ~_umask())
    _sync(path, os.O_RDWR)


@cache
def _umask() -> int:
    found = os.umask(0o077)  # it can only be read by setting it
    os.umask(found)
    return found


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not flags & os.O_DIRECTORY or error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def parse_json(text: bytes) -> Any:
    """JSON as this project writes it. Raises ValueError on what is not UTF-8, nested too deep, or not finite, and on an
    object with a name twice, of which another reader may see the other value."""

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number} is not finite")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice in an object")
        return found

    try:
        return json.loads(text.decode(), object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_validated(path: Path, kind: type[Content], what: str) -> Content:
    """A JSON file as a pydantic model or dataclass. Raises ValueError that names the file, the field and the value."""
    from pydantic import TypeAdapter, ValidationError

    try:
        text = read_whole(path)
        parse_json(text)  # it refuses more than pydantic does: a name twice, numbers that are not finite
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{path}: is not {what} ({first_fault(error)})") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not {what} ({error})") from error


def clearest(error: "ValidationError") -> "ErrorDetails":
    """The fault to tell: a name that is unknown, before the field that is missing for it."""
    faults = error.errors(include_url=False)
    return next((each for each in faults if each["type"] == UNKNOWN), faults[0])


def nearest_field(kind: "type[BaseModel]", place: Sequence[int | str]) -> str:
    """` (did you mean NAME?)` for an unknown field at `place` in such a file; empty where no field is near."""
    for part in place[:-1]:
        field = kind.model_fields.get(str(part))
        kind = (_model_in(field.annotation) if field else None) or kind
    near = difflib.get_close_matches(str(place[-1]), kind.model_fields, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _model_in(annotation: Any) -> "type[BaseModel] | None":
    """The model that a type is, or that it holds: of `dict[str, Model]` and `Model | None`."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def first_fault(error: "ValidationError", kind: "type[BaseModel] | None" = None) -> str:
    """A field that pydantic refused: its dotted name, what is wrong, and the value found. Of a `kind` that a person
    writes, an unknown field has the nearest known one beside it."""
    fault = clearest(error)
    field = ".".join(str(part) for part in fault["loc"])
    if kind and fault["type"] == UNKNOWN:
        return f"{field}: unknown field{nearest_field(kind, fault['loc'])}"
    message = fault["msg"].removeprefix("Value error, ")
    tells_all = fault["type"] == "missing" or (fault["type"] == "value_error" and not field)  # found: the whole file
    found = "" if tells_all else f" (found {fault['input']!r:.80})"
    return f"{field}: {message}{found}" if field else f"{message}{found}"
