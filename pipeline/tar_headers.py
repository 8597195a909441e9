"""Headers of foreign tars, which `tarfile` reads within bounds.

Python's own parser of PAX headers takes a time that grows with the square of a run of digits (CVE-2024-6232): a header
of 1 MiB of digits would take a quarter of an hour, deaf to signals.
"""

import re
import tarfile
from typing import Any, Self

LONGEST_PAX_BYTES = 64 << 10
"""Of a PAX header; paths and extended attributes take a few KiB."""
LONGEST_DIGITS = 100
"""Of a run of digits in one; a length or a time has 20."""


class HostileHeaderError(Exception):
    """A header that takes too much time or memory. No TarError, as those of a tar that a connection cuts are."""


class _Again:
    """A tar's file whose next read gives what was read already; then it is the file again."""

    def __init__(self, content: bytes, tar: Any) -> None:
        self.content, self.tar, self.file = content, tar, tar.fileobj

    def read(self, _size: int = -1) -> bytes:
        self.tar.fileobj = self.file
        return self.content

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class BoundedTarInfo(tarfile.TarInfo):
    """For `tarfile.open(tarinfo=BoundedTarInfo)`. Raises HostileHeaderError on a PAX header beyond bounds."""

    def _proc_pax(self, tar: Any) -> Self:
        if not 0 <= self.size <= LONGEST_PAX_BYTES:
            raise HostileHeaderError(f"a PAX header of {self.size} bytes")
        content = tar.fileobj.read(self._block(self.size))  # type: ignore[attr-defined]
        if max(map(len, re.split(rb"\D+", content))) > LONGEST_DIGITS:
            raise HostileHeaderError(f"a PAX header with more than {LONGEST_DIGITS} digits in a row")
        tar.fileobj = _Again(content, tar)
        found: Self = super()._proc_pax(tar)  # type: ignore[misc]
        return found
