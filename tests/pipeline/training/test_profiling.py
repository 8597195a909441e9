"""A profile holds the steps that were asked for, and changes nothing."""

import gzip
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import Write, train_here


def test_two_steps_are_profiled_and_the_weights_stay_the_same(folder: Path, write: Write) -> None:
    batch, weights = {"global_size": 4, "micro_size": 2}, []
    for name, steps in (("plain", 0), ("profiled", 2)):
        for code, _, errors in run_on_ranks(2, train_here, write(name, batch=batch, run={"profile_steps": steps})):
            assert code == 0, errors
        weights.append(load_file(checkpoint.folder_of(folder / name, 8) / native.FILE_NAME))
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    assert not (folder / "plain" / "profile").exists()
    for rank in range(2):
        with gzip.open(folder / "profiled" / "profile" / f"rank{rank}.trace.json.gz") as file:
            names = [event["name"] for event in json.load(file)["traceEvents"]]
        assert len({name for name in names if name.startswith("ProfilerStep#")}) == 2
        assert any("gloo" in name for name in names) and "aten::addmm" in names
