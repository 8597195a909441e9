"""The same captions whatever the number of workers and the batch size, and however wrong a clock is."""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep import capfilt
from data_prep.captioning import shared_work
from data_prep.captioning.capfilt_plan import Plan, Selection
from data_prep.captioning.captioned_shard import Candidates
from data_prep.captioning.captioner import SamplingSettings
from data_prep.captioning.device import choose_device
from data_prep.captioning.shared_work import caption_shards
from data_prep.shards.receipts import finished_shards
from data_prep.shards.tar_files import Sample
from pipeline.distributed import device
from pipeline.files import PARTIAL_SUFFIX
from pipeline.progress_line import ProgressLine
from tests.support.gloo_ranks import free_port
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.tiny_shards import write_tiny_shards

ROOT = Path(__file__).parents[2]
MAKING = {"sampling": {"seed": 0}, "models": {"captioner": "b", "ranker": "c"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("capfilt")
    save_tiny_blip(folder / "blip", num_layers=1)
    save_tiny_clip(folder / "clip")
    write_tiny_shards(folder / "raw", 22, samples_per_shard=11)
    yield folder
    torch.set_num_threads(before)


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    models = ["--captioner", str(folder / "blip"), "--ranker", str(folder / "clip"), "--device", "cpu"]
    return ["--input", str(folder / "raw"), "--output", str(output), *models, "--max-length", "9", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_batches_of_1_to_16_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    found = set()
    options = capfilt.parse(arguments(folder, tmp_path))
    models = capfilt.Models(options, SamplingSettings(max_length=9))
    tars = finished_shards(folder / "raw")
    for batch_size in range(1, 17):
        options.batch_size = batch_size
        output = tmp_path / str(batch_size)
        caption_shards(tars, Plan(output, MAKING, Selection()), models, 30.0)
        found.add(tuple(sorted(contents(output).items())))
    assert len(found) == 1


def test_progress_counts_pictures_within_a_shard_and_each_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[ProgressLine] = []
    counts: list[int] = []

    class Kept(ProgressLine):
        def __init__(self, *about: Any, **more: Any) -> None:
            super().__init__(*about, **more)
            lines.append(self)

    def no_captions(target: Path, samples: list[Sample]) -> Candidates:
        for sample in samples:
            yield sample, None
            counts.append(lines[-1].done)

    monkeypatch.setattr(shared_work, "ProgressLine", Kept)
    tars = finished_shards(folder / "raw")
    caption_shards(tars[:1], Plan(tmp_path, MAKING, Selection()), no_captions, 30.0)
    caption_shards(tars, Plan(tmp_path, MAKING, Selection()), no_captions, 30.0)  # the first one is there
    assert counts == [*range(1, 12), *range(12, 23)]
    assert [(line.done, line.total, line.unit) for line in lines] == [(11, 11, "pictures"), (22, 22, "pictures")]


def _run(arguments: list[str]) -> None:
    sys.exit(capfilt.main(arguments))


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_at_once_give_what_one_gives(folder: Path, tmp_path: Path, workers: int) -> None:
    assert capfilt.main(arguments(folder, tmp_path / "one")) == 0
    context = multiprocessing.get_context("fork")  # their imports would take most of the time
    batches = [arguments(folder, tmp_path / "many", "--batch-size", str(number + 1)) for number in range(workers)]
    running = [context.Process(target=_run, args=(each,)) for each in batches]
    for each in running:
        each.start()
    for each in running:
        each.join(timeout=120)
    assert [each.exitcode for each in running] == [0] * workers
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("wrong_s", [-3600, 3600])
def test_files_from_a_clock_an_hour_off_change_nothing(folder: Path, tmp_path: Path, wrong_s: int) -> None:
    """Another machine's finished shard stays, its lost lease is stolen after its time, its remains go."""
    assert capfilt.main(arguments(folder, tmp_path / "calm")) == 0
    output = tmp_path / "out"
    output.mkdir()
    first, second = sorted(tar.name for tar in finished_shards(tmp_path / "calm"))
    for name, content in contents(tmp_path / "calm").items():
        if name.startswith(Path(first).stem):
            (output / name).write_bytes(content)
    (output / f".{second}.abc{PARTIAL_SUFFIX}").write_text("half")
    lease = output / f"{Path(second).stem}.lease"
    lease.write_text('{"token": "t", "host": "another machine", "pid": 1, "started": "1"}')
    then = time.time() + wrong_s
    for path in output.iterdir():
        os.utime(path, (then, then))
    finished = (output / first).stat().st_mtime_ns
    began = time.monotonic()
    assert capfilt.main(arguments(folder, output, "--lease-s", "2")) == 0
    assert time.monotonic() - began > 2.0, "the lease was respected for its time"
    assert (output / first).stat().st_mtime_ns == finished
    assert contents(output) == contents(tmp_path / "calm")


def test_the_deepspeed_launchers_ranks_share_the_shards(folder: Path, tmp_path: Path) -> None:
    assert capfilt.main(arguments(folder, tmp_path / "alone")) == 0
    command = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command += ["--module", "data_prep.capfilt", *arguments(folder, tmp_path / "ranks"), "--device", "auto"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert contents(tmp_path / "ranks") == contents(tmp_path / "alone")
    made = [int(number) for number in re.findall(r"(\d+) shards made now", run.stdout)]
    assert len(made) == 2 and sum(made) == 2, "each shard is captioned once, by one of two ranks"


@pytest.mark.parametrize(("variable", "number"), [("LOCAL_RANK", "1"), ("SLURM_LOCALID", "3"), ("LOCAL_RANK", "6")])
def test_a_rank_takes_the_gpu_of_its_own_number(monkeypatch: pytest.MonkeyPatch, variable: str, number: str) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "reason_against", lambda name: None)  # the GPUs work
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device("auto") == "cuda:0"
    monkeypatch.setenv(variable, number)
    assert choose_device("auto") == choose_device("cuda") == f"cuda:{int(number) % 4}"
    assert choose_device("cuda:2") == "cuda:2"
    with pytest.raises(ValueError, match="--device cuda:4: torch sees 4 GPUs"):
        choose_device("cuda:4")
