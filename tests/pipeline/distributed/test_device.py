"""A GPU that was allotted and does not work is an error, on every rank alike; a person may still choose the CPU."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_prep.captioning.device import choose_device
from pipeline.distributed import device, process_group
from tests.support.gloo_ranks import free_port
from tests.support.tiny_runs import ROOT, write_recipe
from tests.support.tiny_shards import tiny_manifest

SIGNS = [
    ("SLURM_JOB_GPUS", "0,1"),
    ("SLURM_STEP_GPUS", "0"),
    ("SLURM_GPUS_ON_NODE", "8"),
    ("CUDA_VISIBLE_DEVICES", "0"),
    ("CUDA_VISIBLE_DEVICES", "GPU-5e9f"),
]
OF_LAUNCHERS = (
    "CUDA_VISIBLE_DEVICES", "CROSS_RANK", "DS_ACCELERATOR", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing launched this process, and its machine has no GPU."""
    if torch.cuda.is_available() or list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    for name in {*OF_LAUNCHERS, *(name for name in os.environ if name.startswith("SLURM_"))}:
        monkeypatch.setenv(name, "")  # so that the test leaves everything as it was
        monkeypatch.delenv(name)
    device.reason_against.cache_clear()


@pytest.mark.parametrize(("variable", "value"), SIGNS)
def test_an_allotted_gpu_that_torch_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setattr(device, "driver_version", lambda: "535.104.05")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert process_group.device_name() == "cpu"
    monkeypatch.setenv(variable, value)
    for choose in (process_group.device_name, lambda: choose_device("auto"), lambda: choose_device("cuda")):
        with pytest.raises(device.DeviceError) as found:
            choose()
        line = str(found.value)
        assert f"{variable}={value}" in line and "\n" not in line
        assert "CUDA 13.0" in line and "535.104.05" in line and "README" in line and "CUDA_VISIBLE_DEVICES=" in line
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CUDA_VISIBLE_DEVICES", ""),
        ("CUDA_VISIBLE_DEVICES", "-1"),
        ("DS_ACCELERATOR", "cpu"),
    ],
)
def test_a_person_may_hide_the_gpus(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: variable == "DS_ACCELERATOR")
    monkeypatch.setenv(variable, value)
    assert process_group.device_name() == "cpu"


@pytest.mark.parametrize("given", ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"])
def test_gpus_without_device_files_are_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """SLURM writes NoDevFiles itself: for a job without GPUs, and on a node that has lost the files of its GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert process_group.device_name() == "cpu"
    monkeypatch.setenv(given, "0")
    with pytest.raises(device.DeviceError, match=rf"GPU \({given}=0\): torch "):
        process_group.device_name()


def test_no_gpu_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    monkeypatch.setenv("SLURM_JOB_GPUS", "")
    # DeepSpeed's launcher numbers its ranks' devices, also where there are none.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CROSS_RANK", "0")
    assert process_group.device_name() == "cpu"


def test_a_gpu_that_is_seen_and_cannot_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(device.DeviceError, match=r"GPU \(cuda:0\): torch "):
        process_group.device_name()


def test_the_drivers_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read_text, told = Path.read_text, {}
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: told["text"] if "nvidia" in str(path) else read_text(path, **how)
    )
    kernel = "NVRM version: NVIDIA UNIX {}  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC version: gcc 12.3.0"
    for names in (("x86_64 Kernel Module", "535.104.05"), ("Open Kernel Module for x86_64", "550.54.15")):
        told["text"] = kernel.format(*names)
        assert device.driver_version() == names[1]
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.driver_version() == "(none found)"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 470.82.01\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert device.driver_version() == "470.82.01"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A process that sees one working GPU, as one bound to its task; what it gave to torch.distributed."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device, "reason_against", lambda name: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda name: asked.update(device=name))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: asked.update(backend=backend, **options))
    return asked


def test_a_rank_that_sees_one_gpu_tells_deepspeed_its_number(
    monkeypatch: pytest.MonkeyPatch, gpus: dict[str, Any]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    process_group.initialise(even_alone=True)
    assert gpus["backend"] == "nccl" and gpus["device"] == "cuda:0"
    assert os.environ["LOCAL_RANK"] == "0"  # DeepSpeed calls set_device with it


def test_torch_waits_longer_than_every_deadline_of_a_step(gpus: dict[str, Any]) -> None:
    from pipeline.training.watchdog import FIRST_STEP_FACTOR, GRACE_S, collective_timeout_s

    for deadline_s in (1.0, 1800.0, 1_000_000.0):
        assert collective_timeout_s(deadline_s) > deadline_s * FIRST_STEP_FACTOR + GRACE_S
    process_group.initialise(even_alone=True, timeout_s=7500.0)
    assert gpus["timeout"].total_seconds() == 7500
    assert os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "7500"
    process_group.initialise(even_alone=True)
    assert gpus["timeout"].total_seconds() == 86_400  # of evaluation


@pytest.mark.parametrize("name", ["public", "of torch 2.11"])
def test_every_group_has_the_time_that_is_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    process_group.initialise(even_alone=True)
    try:
        groups: list[Any] = [dist.group.WORLD, dist.new_group()]
        if name != "public":
            monkeypatch.delattr(dist, "set_timeout")
        process_group.limit_waiting(77.0)
        timeouts = [each._get_backend(torch.device("cpu")).options._timeout for each in groups]
        assert [each.total_seconds() for each in timeouts] == [77.0, 77.0]
    finally:
        process_group.shut_down()


def started(arguments: list[str], ranks: list[dict[str, str]]) -> list[tuple[int, str]]:
    """A real job, each rank with variables of its own: its exit code and standard errors."""
    common = {"WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    kept = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=kept | common | {"RANK": str(number), "LOCAL_RANK": str(number)} | own,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, own in enumerate(ranks)
    ]
    try:
        return [(job.wait(), errors) for job in jobs for errors in [job.communicate(timeout=120)[1]]]
    finally:
        for job in jobs:
            job.kill()


def errors_of(answers: list[tuple[int, str]]) -> list[str]:
    assert [code for code, _ in answers] == [1] * len(answers), answers
    found = [[line for line in errors.splitlines() if line.startswith("error: ")] for _, errors in answers]
    assert [len(lines) for lines in found] == [1] * len(answers), answers
    return [line for lines in found for line in lines]


def test_one_node_with_a_broken_gpu_is_named_by_every_rank(towers: Path, tmp_path: Path) -> None:
    """Rank 1 alone was allotted a GPU, and this machine's torch cannot use it."""
    manifest = tiny_manifest(tmp_path / "data", 12)
    recipe = write_recipe(tmp_path, towers, manifest, "run", 1, None, batch={"global_size": 4, "micro_size": 2})
    lines = errors_of(started(["pipeline.train", *recipe], [{}, {"CUDA_VISIBLE_DEVICES": "0"}]))
    assert len(set(lines)) == 1
    assert f"rank 1 on {os.uname().nodename} (1 of 2 ranks): GPU (CUDA_VISIBLE_DEVICES=0): torch " in lines[0]


class Told:
    """What the ranks have told: the store of a job of which this process is one rank."""

    def __init__(self, *others: tuple[str, str, str]) -> None:
        self.values = {f"device/{number}": json.dumps(each) for number, each in enumerate(others, start=1)}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def multi_get(self, keys: list[str]) -> list[str]:
        return [self.values[key] for key in keys]

    def wait(self, keys: list[str], _timeout: timedelta) -> None:
        assert keys == [f"read/{number}" for number in range(len(keys))] and "read/0" in self.values


def test_ranks_with_and_without_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert process_group._agree_on_device(Told(("cpu", "b", ""), ("cpu", "c", "")), None) == "cpu"
    with pytest.raises(device.DeviceError, match=r"rank 0 on .* computes on the CPU, and rank 2 on c on a GPU"):
        process_group._agree_on_device(Told(("cpu", "b", ""), ("cuda", "c", "")), None)
    with pytest.raises(device.DeviceError, match=r"rank 1 on b \(2 of 3 ranks\): too old"):
        process_group._agree_on_device(Told(("none", "b", "too old"), ("none", "c", "too old")), None)
