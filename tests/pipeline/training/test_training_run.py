"""Whole runs on tiny towers: by the deepspeed launcher, killed and rerun, stopped by a signal, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from pipeline.training import checkpoint
from pipeline.training.faults import INITIAL_SCALE
from pipeline.weights import native
from tests.support.gloo_ranks import free_port, run_on_ranks
from tests.support.tiny_runs import train_here
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[3]
STEPS = 6
SAMPLES = 20  # two global batches an epoch, and four samples left over


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Path:
    return tiny_manifest(folder / "data", SAMPLES, samples_per_shard=8)


@pytest.fixture(scope="module")
def write_recipe(folder: Path, towers: Path, manifest: Path) -> Callable[..., list[str]]:
    def write(name: str, stage: int = 1, language: str | None = None, **sections: dict[str, Any] | str) -> list[str]:
        """The command line of a run named `name`, of two ranks with two micro batches each a step."""
        content: dict[str, Any] = tiny_recipe(towers, manifest, folder / name, stage, language)
        content["batch"] = {"global_size": 8, "micro_size": 2, "accumulation": 2}
        content["run"] |= {"steps": STEPS, "zero": str(ROOT / "ds_configs" / "zero2.json")}
        for section, fields in sections.items():
            content[section] = content[section] | fields if isinstance(fields, dict) else fields
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return ["--recipe", str(path)]

    return write


@pytest.fixture(scope="module")
def undisturbed(folder: Path, write_recipe: Callable[..., list[str]]) -> Path:
    """The run folder of a run that nothing happened to, by the launcher that users call."""
    command = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    arguments = ["--module", "pipeline.train", *write_recipe("undisturbed")]
    run = subprocess.run([*command, *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert str(folder / "undisturbed") in run.stdout.splitlines()
    return folder / "undisturbed"


def test_torchrun_trains_as_deepspeed_does(undisturbed: Path, write_recipe: Callable[..., list[str]]) -> None:
    command = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]
    arguments = ["-m", "pipeline.train", *write_recipe("torchrun")]
    run = subprocess.run([*command, *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found, wanted = weights_of(undisturbed.with_name("torchrun")), weights_of(undisturbed)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def train_until_killed_in_a_step(arguments: list[str]) -> None:
    """Rank 1 is killed after its fourth step's gradients are there; rank 0 is left alone with its collective."""
    from pipeline.training import loop

    steps, train_step = [], loop.train_step

    def step_of_death(*parts: Any) -> Any:
        steps.append(train_step(*parts))
        if len(steps) == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return steps[-1]

    with mock.patch.object(loop, "train_step", step_of_death):
        train_here(arguments)


def train_until_killed_in_a_save(arguments: list[str]) -> None:
    """Rank 0 is killed in the save of step 4, when everything but COMPLETE is written."""
    write = checkpoint.replace_file

    def write_of_death(path: Path, text: str) -> None:
        if path.name == "COMPLETE" and path.parent.name == "step_00000004":
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, text)

    with mock.patch.object(checkpoint, "replace_file", write_of_death):
        train_here(arguments)


def weights_of(run_folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    return load_file(checkpoint.folder_of(run_folder, step) / native.FILE_NAME)


def lines_of(run_folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("_per_s", "_share", "memory_mib")  # differs from one time to the next
    return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]


def test_a_run_by_the_launcher_leaves_what_the_design_says(undisturbed: Path, towers: Path) -> None:
    for name in ("recipe.yaml", "ds_config.json", "environment.json", "tensorboard"):
        assert (undisturbed / name).exists()
    assert [path.name for path in checkpoint.complete_checkpoints(undisturbed)] == ["step_00000004", "step_00000006"]
    assert not (undisturbed / "checkpoints" / "step_00000002").exists()  # two are kept
    lines = lines_of(undisturbed)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["samples"] for line in lines] == [8, 16, 24, 32, 40, 48]
    names = {"loss", "itc_loss", "itm_loss", "itg_loss", "itc_accuracy", "itm_accuracy", "temperature"}
    names |= {"learning_rate", "gradient_norm", "corrupt_samples", "skipped_steps", "itg_perplexity"}
    names |= {"samples_per_s", "tokens_per_s", "memory_mib", "data_share", "communication_share", "checkpoint_share"}
    raw = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert all(line.keys() >= names for line in raw)
    shares = [line["data_share"] + line["communication_share"] + line["checkpoint_share"] for line in raw]
    assert all(0 < share <= 1 for share in shares)
    state = json.loads((undisturbed / "checkpoints" / "step_00000006" / "state.json").read_text())
    assert (state["step"], state["consumed"], state["world_size"]) == (6, 48, 2)


def test_checkpoints_hold_the_bridge_and_nothing_frozen(undisturbed: Path, towers: Path) -> None:
    last = checkpoint.folder_of(undisturbed, STEPS)
    weights, moments = weights_of(undisturbed), load_file(last / checkpoint.OPTIMIZER)
    recipe, tensors = native.read_weights(undisturbed)
    assert recipe.run.output == undisturbed and tensors.keys() == weights.keys()
    assert moments.keys() == {f"{moment}.{name}" for moment in ("exp_avg", "exp_avg_sq") for name in weights}
    assert all(moments[f"exp_avg_sq.{name}"].shape == tensor.shape for name, tensor in weights.items())
    names = {path.name for path in last.iterdir()}
    assert names == {native.FILE_NAME, checkpoint.OPTIMIZER, "state.json", "COMPLETE"}


@pytest.mark.parametrize("death", [train_until_killed_in_a_step, train_until_killed_in_a_save])
def test_killed_and_run_again_it_ends_with_the_same_bits(
    undisturbed: Path, folder: Path, write_recipe: Callable[..., list[str]], death: Callable[[list[str]], None]
) -> None:
    name = death.__name__
    arguments = write_recipe(name)
    with pytest.raises(AssertionError, match=r"died without an answer|rank 0 failed"):  # or rank 0 misses it first
        run_on_ranks(2, death, arguments)
    complete = [path.name for path in checkpoint.complete_checkpoints(folder / name)]
    assert complete == ["step_00000002"]
    # The rerun reads its samples in worker processes: that may not matter either.
    for code, _, errors in run_on_ranks(2, train_here, [*arguments, "--set", "data.num_workers=1"]):
        assert code == 0, errors
    found, wanted = weights_of(folder / name), weights_of(undisturbed)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert lines_of(folder / name) == lines_of(undisturbed)


def load_and_compare(arguments: list[str]) -> dict[str, bool]:
    """Resume, and instead of training compare the engine's weights with the file's."""
    from pipeline.training import loop

    compared: dict[str, bool] = {}

    def compare(parts: Any, progress: Any) -> bool:
        wanted = native.read_weights(checkpoint.folder_of(parts.recipe.run.output, progress.step))[1]
        found = parts.engine.module.bridge.state_dict()
        compared.update({name: torch.equal(found[name], wanted[name]) for name in wanted}, step=progress.step == 4)
        return True

    with mock.patch.object(loop, "fit", compare):
        code, _, errors = train_here(arguments)
    assert code == 0, errors
    return compared


def test_weights_after_resuming_are_the_saved_ones(
    undisturbed: Path, folder: Path, write_recipe: Callable[..., list[str]]
) -> None:
    copy = folder / "copy" / "checkpoints"
    copy.mkdir(parents=True)
    (copy / "step_00000004").symlink_to(checkpoint.folder_of(undisturbed, 4))
    for compared in run_on_ranks(2, load_and_compare, write_recipe("copy")):
        assert all(compared.values()) and len(compared) > 50


def test_a_complete_run_is_not_run_again_and_another_recipe_is_refused(
    undisturbed: Path, manifest: Path, write_recipe: Callable[..., list[str]]
) -> None:
    arguments = write_recipe("undisturbed")
    moved = manifest.with_name("moved.json")
    moved.write_bytes(manifest.read_bytes())  # its content counts, not its place
    before = (undisturbed / "recipe.yaml").read_bytes(), (undisturbed / "metrics.jsonl").read_bytes()
    first, second = run_on_ranks(2, train_here, [*arguments, "--set", f"data.manifest={moved}"])
    assert first[0] == second[0] == 0 and f"already complete: {undisturbed}" in first[1]
    for change, named in (
        ("optimizer.peak_learning_rate=0.5", "optimizer.peak_learning_rate was 0.001 when it was saved and is 0.5 now"),
        ("qformer.num_query_tokens=5", "qformer.num_query_tokens was 4"),
        ("run.steps=9", "run.steps was 6"),
    ):
        first, second = run_on_ranks(2, train_here, [*arguments, "--set", change])
        assert first[0] == second[0] == 1 and second[2] == ""
        [line] = first[2].splitlines()
        assert line.startswith("error: checkpoint") and named in line and "run.output" in line
    assert before == ((undisturbed / "recipe.yaml").read_bytes(), (undisturbed / "metrics.jsonl").read_bytes())


@pytest.mark.parametrize("language", ["t5", "opt"])
def test_stage_2_starts_from_stage_1_and_is_read_back_whole(
    undisturbed: Path, folder: Path, towers: Path, write_recipe: Callable[..., list[str]], language: str
) -> None:
    arguments = write_recipe(language, 2, language, init_weights=str(undisturbed), run={"steps": 1})
    standing = ("optimizer.peak_learning_rate=1e-30", "optimizer.minimum_learning_rate=0")
    for code, _, errors in run_on_ranks(2, train_here, [*arguments, "--set", *standing]):
        assert code == 0, errors
    first, second = weights_of(undisturbed), weights_of(folder / language, 1)
    shared = first.keys() & second.keys()
    assert second.keys() - shared == {"language_projection.weight", "language_projection.bias"}
    assert all(torch.allclose(first[name], second[name], rtol=0, atol=1e-20) for name in shared)
    model = native.load_model(folder / language, "cpu")
    assert model.stage == 2 and model.recipe.language is not None
    found = model.bridge.state_dict()
    assert all(torch.equal(found[name], second[name]) for name in second)


def test_a_resumed_run_keeps_the_loss_scale_of_its_fp16_language_model(
    folder: Path, write_recipe: Callable[..., list[str]]
) -> None:
    arguments = write_recipe("fp16", 2, "opt", run={"steps": 10, "checkpoint_every_steps": 8, "log_every_steps": 1})
    what_leaps_halves_it = ["faults.spike_factor=1.0001", "optimizer.warmup_steps=0"]
    arguments += ["--set", "language.precision=fp16", *what_leaps_halves_it]

    def end() -> tuple[dict[str, Tensor], dict[str, Any]]:
        for code, _, errors in run_on_ranks(2, train_here, arguments):
            assert code == 0, errors
        return weights_of(folder / "fp16", 10), json.loads((last / "state.json").read_text())

    last = folder / "fp16" / "checkpoints" / "step_00000010"
    weights, state = end()
    middle = json.loads((last.with_name("step_00000008") / "state.json").read_text())
    assert middle["loss_scale"][0] < INITIAL_SCALE
    last.rename(folder / "put_aside")
    again, found = end()
    assert found["loss_scale"] == state["loss_scale"] and all(
        torch.equal(again[name], weights[name]) for name in weights
    )


def stop_rank_1(arguments: list[str]) -> tuple[int, str, str]:
    """Only rank 1 hears the signal, in its third step."""
    from pipeline.training import loop

    steps, train_step = [], loop.train_step

    def step_with_signal(*parts: Any) -> Any:
        steps.append(0)
        if len(steps) == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
        return train_step(*parts)

    with mock.patch.object(loop, "train_step", step_with_signal):
        return train_here(arguments)


def test_a_signal_to_one_rank_stops_all_with_75_and_the_rerun_ends_with_the_same_bits(
    undisturbed: Path, folder: Path, write_recipe: Callable[..., list[str]]
) -> None:
    arguments = write_recipe("stopped")
    assert [code for code, _, _ in run_on_ranks(2, stop_rank_1, arguments)] == [75, 75]
    assert checkpoint.complete_checkpoints(folder / "stopped")[-1].name == "step_00000003"
    assert [code for code, _, _ in run_on_ranks(2, train_here, arguments)] == [0, 0]
    found, wanted = weights_of(folder / "stopped"), weights_of(undisturbed)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_sigterm_stops_a_run_without_launcher_with_75(folder: Path, write_recipe: Callable[..., list[str]]) -> None:
    batch = {"global_size": 2, "micro_size": 2, "accumulation": 1}
    arguments = write_recipe("alone", batch=batch, run={"steps": 100_000, "checkpoint_every_steps": 50_000})
    command = [sys.executable, "-m", "pipeline.train", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        metrics, deadline = folder / "alone" / "metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            time.sleep(0.2)
        process.terminate()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    [saved] = checkpoint.complete_checkpoints(folder / "alone")
    assert f"step_{lines_of(folder / 'alone')[-1]['step']:08d}" == saved.name
    assert str(saved) in output


def test_a_rank_names_the_shard_that_it_cannot_read(folder: Path, write_recipe: Callable[..., list[str]]) -> None:
    broken = tiny_manifest(folder / "broken_data", 8, samples_per_shard=8)
    [tar] = (folder / "broken_data").rglob("*.tar")
    tar.write_bytes(b"\0" * tar.stat().st_size)
    arguments = write_recipe("broken", data={"manifest": str(broken), "num_workers": 1}, run={"steps": 1})
    for code, _, errors in run_on_ranks(2, train_here, arguments):
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(lines) == 1 and str(tar) in lines[0] and "no readable sample" in lines[0]
