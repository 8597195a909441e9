"""File systems without locks, sync of folders or space: the work goes on, or one line names the file."""

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline import convert
from pipeline.config import parse_recipe
from pipeline.files import lock_file, open_lock, read_validated, replace_file
from pipeline.models.build import build_bridge
from pipeline.weights import native
from tests.support.tiny_towers import tiny_recipe


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_work_goes_on_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "lock"
    with path.open("w") as file:
        lock_file(file, path)
        lock_file(file, path, wait=True)
    assert str(path) in caplog.text and "-o flock" in caplog.text


def test_a_lock_that_another_holds_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as one, path.open("w") as other:
        lock_file(one, path)
        with pytest.raises(BlockingIOError):
            lock_file(other, path)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "device", "socket"])
def test_what_is_no_file_at_a_locks_path_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "lock", tmp_path / "precious"
    target.write_text("kept")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to({"link": target, "dangling": tmp_path / "new", "device": Path("/dev/zero")}[kind])
    with pytest.raises(ValueError, match=r"lock: is not a regular file, and a lock is; remove it"):
        open_lock(path)
    assert target.read_text() == "kept" and not (tmp_path / "new").exists()


def test_a_lock_is_made_and_what_it_says_is_kept(tmp_path: Path) -> None:
    with open_lock(tmp_path / "lock") as file:
        file.write(b"process 1")
    with open_lock(tmp_path / "lock") as file:
        assert file.read() == b"process 1"


def test_no_lock_is_opened_in_another_way() -> None:
    """`open("w")` empties what a symlink leads to, and waits for the reader of a pipe."""
    root = Path(__file__).parents[2]
    sources = [path for room in ("pipeline", "data_prep", "eval") for path in (root / room).rglob("*.py")]
    locking = [path for path in sources if "lock_file(" in (text := path.read_text()) or "lockf(" in text]
    others = [path.name for path in locking if "open_lock(" not in path.read_text()]
    assert others == ["predictions.py"]  # which locks the file that it appends to


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CIFS. A file that cannot be synced stays an error."""
    real, refused = os.fsync, stat.S_ISDIR

    def fsync(descriptor: int) -> None:
        if refused(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}" and len(list(tmp_path.iterdir())) == 1
    refused = stat.S_ISREG
    with pytest.raises(OSError, match="Invalid argument"):
        replace_file(tmp_path / "b.json", "{}")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_sparse_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(ValueError, match=r"huge\.json: is not settings \(has 4398046511104 bytes"):
        read_validated(path, dict, "settings")


@pytest.mark.parametrize("write_as", ["native", "lavis", "huggingface"])
def test_weights_for_which_there_is_no_room_leave_nothing(write_as: str, small_disk: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = tiny_recipe(tmp_path / "towers", tmp_path / "m.json", tmp_path / "run", 1)
    recipe = parse_recipe(content)
    native.save_weights(build_bridge(recipe), recipe, 3, tmp_path)
    if write_as == "huggingface":
        from tests.support.tiny_towers import save_tiny_eva

        content["vision"]["name"] = save_tiny_eva(tmp_path / "towers" / "eva")
        recipe = parse_recipe(content)
        native.save_weights(build_bridge(recipe), recipe, 3, tmp_path)
    target = small_disk / "weights.pth"
    with pytest.raises((ValueError, OSError), match=r"weights\.pth.*(disk is full|No space left)") as error:
        convert.convert(tmp_path / native.FILE_NAME, target, "native", write_as, None)
    assert "\n" not in str(error.value) and not list(small_disk.iterdir())
