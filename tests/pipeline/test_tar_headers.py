"""PAX headers are read as tarfile reads them, within bounds of their size and of runs of digits."""

import io
import tarfile

import pytest

from pipeline.tar_headers import LONGEST_PAX_BYTES, BoundedTarInfo, HostileHeaderError


def packed(pax: bytes) -> bytes:
    """A tar with a PAX header of these bytes before one file."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(pax)
    body = tarfile.TarInfo("a.txt")
    body.size = 3
    blocks = [header.tobuf(tarfile.USTAR_FORMAT), pax.ljust(-(-len(pax) // 512) * 512, b"\0")]
    return b"".join([*blocks, body.tobuf(tarfile.USTAR_FORMAT), b"abc".ljust(512, b"\0"), bytes(1024)])


def names(content: bytes, mode: str) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content), mode=mode, tarinfo=BoundedTarInfo) as tar:
        found = []
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None and file.read() == b"abc"
            found.append(member.name)
        return found


@pytest.mark.parametrize("mode", ["r:", "r|"])
def test_long_names_are_read_as_tarfile_reads_them(mode: str) -> None:
    name = "folder/" + "é" * 300 + ".txt"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for each in (name, "b.txt", name + "2"):
            info = tarfile.TarInfo(each)
            info.size, info.mtime = 3, 1234567890.123456789
            tar.addfile(info, io.BytesIO(b"abc"))
    assert names(buffer.getvalue(), mode) == [name, "b.txt", name + "2"]


@pytest.mark.parametrize("mode", ["r:", "r|"])
@pytest.mark.parametrize("pax", [b"1" * 40_000, b"x" * (LONGEST_PAX_BYTES + 1), b"12 a=b\n" + b"9" * 101 + b" c=d\n"])
def test_a_hostile_header_ends_the_tar(pax: bytes, mode: str) -> None:
    """tarfile reads 40,000 digits for 1.2 s, and a mebibyte for a quarter of an hour."""
    with pytest.raises(HostileHeaderError, match="a PAX header"):
        names(packed(pax), mode)
