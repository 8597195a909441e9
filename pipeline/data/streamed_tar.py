"""One streamed tar: opened from a URL or a `pipe:` command, and read once, within bounds.

Nothing of the server is trusted: not the sizes that headers give, nor that the tar ends, nor where it redirects to.
"""

import http.client
import re
import signal
import subprocess
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import killpg
from typing import IO, Any

from pipeline.tar_headers import BoundedTarInfo

TIMEOUT_S = 60.0  # of a connection that says nothing
MOST_BYTES = 128 << 20  # of a file in a tar, and of what lies between two files or after the last one
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin
METADATA = re.compile(r"__[^/]*__($|/)")  # as webdataset has it
FAULTS = (OSError, http.client.HTTPException, tarfile.TarError, EOFError, zlib.error)


class HostileTarError(Exception):
    """What follows in a tar cannot be read within bounds."""


class Tar:
    """A stream that is read once: how many bytes went through, in all and since the last file, and the last of them."""

    def __init__(self, url: str, stream: IO[bytes] | http.client.HTTPResponse) -> None:
        self.url, self.stream, self.bytes, self.between, self.end = url, stream, 0, 0, b""

    def read(self, size: int) -> bytes:
        content = self.stream.read(size)
        if not self.bytes and content.startswith(PACKED):
            raise HostileTarError("is compressed, and may unpack without end; unpack it first")
        self.bytes += len(content)
        self.between += len(content)
        if self.between > MOST_BYTES:
            raise HostileTarError(f"has {MOST_BYTES >> 20} MiB without a file")
        self.end = (self.end + content)[-1024:]
        return content

    def finish(self) -> bool:
        """Read what is left of the tar. Raises OSError when its end is missing; False when there is other content."""
        only_zeros = True
        while content := self.read(1 << 20):
            only_zeros &= not content.strip(b"\0")
        if self.end != bytes(1024):
            raise OSError(f"stops after {self.bytes} bytes, before the tar's end")
        return only_zeros


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib's own also goes to ftp."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        if not newurl.lower().startswith(("https://", "http://")):
            raise OSError("redirects to another scheme than http and https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def opened(url: str) -> Iterator[Tar]:
    """The content of a URL or the output of a `pipe:` command. Raises OSError when it fails or stops too soon."""
    if not url.startswith("pipe:"):
        with urllib.request.build_opener(_WebRedirects).open(url, timeout=TIMEOUT_S) as answer:
            yield Tar(url, answer)
        return
    command = url.removeprefix("pipe:")
    with subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            tar = Tar(url, process.stdout)
            yield tar
            if status := process.wait():
                raise OSError(f"the command ended with status {status}")
        except FAULTS as error:  # a command that fails leaves half a tar: its status says more
            with suppress(subprocess.TimeoutExpired):
                if status := process.wait(timeout=1.0):
                    raise OSError(f"the command ended with status {status}") from error
            raise
        finally:
            if process.poll() is None:  # the reader left early: end the shell and all that it started
                killpg(process.pid, signal.SIGKILL)


def files(tar: Tar, hostile: list[Exception]) -> Iterator[dict[str, Any]]:
    """Name and content of each regular file; names as `__this__` are metadata of others. Ends before what is hostile,
    and says so in `hostile`."""
    try:
        with tarfile.open(fileobj=tar, mode="r|", tarinfo=BoundedTarInfo) as members:  # type: ignore[call-overload]
            for member in members:
                if member.isreg() and not METADATA.match(member.name):
                    if not 0 <= member.size <= MOST_BYTES:
                        raise HostileTarError(f"has a file of {member.size} bytes, more than {MOST_BYTES}")
                    content = members.extractfile(member).read()  # type: ignore[union-attr]  # a regular file
                    tar.between = 0
                    yield {"fname": member.name, "data": content, "__url__": tar.url}
                members.members = []  # else it keeps every header
    except FAULTS:
        raise
    except Exception as error:  # tarfile raises many kinds for hostile headers, RecursionError among them
        hostile.append(error)
