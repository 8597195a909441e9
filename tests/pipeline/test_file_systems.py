"""File systems without locks, sync of folders or space: the work goes on, or one line names the file."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline import convert
from pipeline.config import parse_recipe
from pipeline.files import lock_file, read_validated, replace_file
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
