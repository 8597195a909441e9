"""A full disk: the command names what it could not write, leaves no part of a file, and goes on once there is room."""

import subprocess
from pathlib import Path

import pytest
import torch

from data_prep import capfilt, export_lavis
from data_prep.captioning.capfilt_plan import Plan, Selection
from data_prep.captioning.captioner import SamplingSettings
from data_prep.captioning.shared_work import caption_shards
from data_prep.shards.receipts import finished_shards
from eval.tasks.predictions import PredictionLog
from pipeline.command_line import finish
from tests.support.small_disk import fill
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.tiny_shards import tiny_manifest, write_tiny_shards

MAKING = {"sampling": {"seed": 0}, "models": {"captioner": "b", "ranker": "c"}}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def test_capfilt_names_what_has_no_room_and_goes_on_later(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for nothing at all, for a lease, for a half tar, for a tar, for its table, and for a whole shard."""
    torch.set_num_threads(1)
    write_tiny_shards(tmp_path / "raw", 22, samples_per_shard=11)
    flags = ["--input", "x", "--output", "y", "--captioner", str(save_tiny_blip(tmp_path / "blip", num_layers=1))]
    flags += ["--ranker", str(save_tiny_clip(tmp_path / "clip")), "--device", "cpu"]
    models = capfilt.Models(capfilt.parse(flags), SamplingSettings(num_captions=2, max_length=7))

    def caption(output: Path) -> int:
        plan = Plan(output, MAKING, Selection())
        return finish(lambda: bool(caption_shards(finished_shards(tmp_path / "raw"), plan, models, 30.0)) * 0)

    assert caption(tmp_path / "calm") == 0
    first = finished_shards(tmp_path / "calm")[0]
    tar_kib = -(-first.stat().st_size // 4096) * 4
    named = []
    for size_kib in (4, 8, 16, tar_kib + 4, tar_kib + 8, tar_kib + 12):
        output = small_disk / str(size_kib)
        output.mkdir()
        resize(small_disk, f"{size_kib}k")
        if size_kib == 4:
            fill(small_disk)
        capsys.readouterr()
        assert caption(output) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {output}/") and line.endswith(": the disk is full; free space, run again")
        named.append(line.removeprefix(f"error: {output}/").partition(":")[0].partition(".")[2])
        assert not [name for name in contents(output) if name.startswith(".") or name.endswith(".lease")]
        (small_disk / "filler").unlink(missing_ok=True)
        resize(small_disk, "4m")
        assert caption(output) == 0
        assert contents(output) == contents(tmp_path / "calm")
        for path in output.iterdir():
            path.unlink()
    assert named[:3] == ["lease", "tar", "tar"] and {"candidates.parquet", "receipt.json"} <= set(named)


def test_other_commands_name_what_has_no_room(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures that are exported, and predictions: written without a temporary file, one after the other."""
    manifest = tiny_manifest(tmp_path / "data", 30)
    assert export_lavis.main([str(manifest), "--output", str(small_disk / "out"), "--layout", "folder"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {small_disk}/out/images/") and "the disk is full" in line
    with PredictionLog(small_disk, 0) as log:
        fill(small_disk)
        with pytest.raises(ValueError, match=rf"{log.path}: the disk is full"):
            log.append([{"image_id": number, "caption": "words " * 99} for number in range(200)])
        (small_disk / "filler").unlink()
