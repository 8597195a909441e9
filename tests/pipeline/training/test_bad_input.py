"""Bad input to `pipeline.train` is one line on stderr that names the field or file, and exit 1 or 2."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline import train
from pipeline.config import for_ranks, load_recipe, parse_recipe
from pipeline.models.build import build_stage1
from pipeline.training.engine import resolve_ds_config
from pipeline.weights import native
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_manifest(tmp_path_factory.mktemp("data"), 12)


class Case:
    """A recipe that can be spoilt, and what `pipeline.train` says of it."""

    def __init__(self, towers: Path, manifest: Path, folder: Path, capsys: Any, monkeypatch: Any) -> None:
        self.towers, self.manifest, self.folder = towers, manifest, folder
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def recipe(self, stage: int = 1, language: str | None = None) -> dict[str, Any]:
        content: dict[str, Any] = tiny_recipe(self.towers, self.manifest, self.folder / "run", stage, language)
        return content | {"batch": {"global_size": 2, "micro_size": 2}}

    def fault(self, content: dict[str, Any], *overrides: str, code: int = 1) -> str:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return self.fault_of(["--recipe", str(path), *(["--set", *overrides] if overrides else [])], code)

    def fault_of(self, arguments: list[str], code: int) -> str:
        self.monkeypatch.setattr("sys.argv", ["pipeline.train", *arguments])
        try:
            found = train.main()
        except SystemExit as end:
            found = int(end.code or 0)
        # transformers and timm speak on stderr too, of what they load; a fault is the last line
        lines = self.capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert found == code and len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in "".join(lines)
        return errors[0]


@pytest.fixture
def case(towers: Path, manifest: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> Iterator[Case]:
    yield Case(towers, manifest, tmp_path, capsys, monkeypatch)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_wrong_usage(case: Case) -> None:
    assert "--recipe" in case.fault_of([], 2)
    assert "--frobnicate" in case.fault_of(["--recipe", "x.yaml", "--frobnicate"], 2)


def test_a_missing_or_unreadable_recipe(case: Case) -> None:
    path = case.folder / "other.yaml"
    assert str(path) in case.fault_of(["--recipe", str(path)], 1)
    for content in ("stage: [1", "- a list", "just text", ""):
        path.write_text(content)
        line = case.fault_of(["--recipe", str(path)], 1)
        assert any(each in line for each in (str(path), "stage", "just text None: unknown field"))
    path.write_bytes(b"stage: \xff\xfe")
    assert str(path) in case.fault_of(["--recipe", str(path)], 1)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("optimizer.minimum_learning_rate=1", "optimizer.minimum_learning_rate 1: is above"),
        ("optimizer.warmup_start=1", "optimizer.warmup_start 1: is above"),
        ("optimizer.betas=[0.9,1.5]", "optimizer.betas"),
        ("speed=1", "speed"),
        ("stage=3", "stage"),
        ("batch.micro_size=0", "batch.micro_size"),
        ("batch.micro_size=many", "batch.micro_size"),
        ("qformer.dropout=1", "qformer.dropout"),
        ("qformer.precision=fp16", "qformer.precision"),
        ("data.crop_scale=[0.9,0.5]", "crop_scale"),
        ("vision=big", "vision"),
        ("language.name=x", "language"),
        ("objectives.negatives=random", "objectives.negatives"),
        ("run.zero=ds_configs/none.json", "ds_configs/none.json"),
        ("data.manifest=none.json", "none.json"),
        ("init_weights=no/weights", "no/weights"),
        ("vision.name=no_such_vit", "no_such_vit"),
        ("qformer.bert=no/bert", "no/bert"),
        ("nonsense", "nonsense"),
        ("=5", "=5"),
        ("batch..micro_size=2", "batch..micro_size=2"),
        ("batch.micro_size=[1", "batch.micro_size=[1"),
    ],
)
def test_a_field_or_value_that_cannot_be(case: Case, override: str, named: str) -> None:
    assert named in case.fault(case.recipe(), override)


def test_a_batch_identity_that_does_not_hold(case: Case) -> None:
    line = case.fault(case.recipe(), "batch.global_size=7", "batch.accumulation=2")
    assert "global_size 7" in line and "micro_size 2 x accumulation 2 x 1 ranks = 4" in line


def test_a_stage_2_without_language_model(case: Case) -> None:
    assert "language" in case.fault(case.recipe(stage=2))


def test_a_global_batch_larger_than_the_data(case: Case) -> None:
    line = case.fault(case.recipe(), "batch.global_size=64", "batch.micro_size=64")
    assert "global_size 64" in line and "12 samples" in line


def test_an_empty_or_broken_manifest(case: Case) -> None:
    path = case.folder / "broken.json"
    whole = json.loads(case.manifest.read_text())
    for content in ("", "{}", json.dumps(whole | {"shards": []}), json.dumps(whole | {"format": "other/1"}), "[1]"):
        path.write_text(content)
        assert str(path) in case.fault(case.recipe(), f"data.manifest={path}")


def test_a_ds_config_that_is_no_policy(case: Case) -> None:
    path = case.folder / "policy.json"
    for content in ("{", "[]", "{}", '{"train_batch_size": 4}', '{"zero_optimization": []}'):
        path.write_text(content)
        assert str(path) in case.fault(case.recipe(), f"run.zero={path}")


@pytest.mark.parametrize(
    ("zero", "named"),
    [
        ({"stage": 0}, '"stage": 1, 2 or 3'),
        ({"stage": 2, "reduce_bucket_sise": 5}, "reduce_bucket_sise 5"),
        ({"stage": 2, "reduce_bucket_size": "auto"}, "reduce_bucket_size 'auto'"),
        ({"stage": 2, "reduce_bucket_size": -1}, "reduce_bucket_size -1"),
    ],
)
def test_a_policy_that_deepspeed_would_not_take(case: Case, zero: dict[str, Any], named: str) -> None:
    path = case.folder / "policy.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    line = case.fault(case.recipe(), f"run.zero={path}")
    assert f"run.zero '{path}'" in line and named in line


def test_a_node_size_that_does_not_divide_the_ranks() -> None:
    recipes = Path(__file__).parents[3] / "pipeline" / "recipes"
    edits = ["run.layout=sharded", "run.zero=ds_configs/zero3_hpz.json"]
    recipe = load_recipe(recipes / "stage2_vitg_flant5xxl.yaml", edits)
    with pytest.raises(ValueError, match="zero_hpz_partition_size 8 does not divide 12 ranks"):
        resolve_ds_config(recipe, 12)
    policies = [resolve_ds_config(for_ranks(recipe, ranks), ranks)["zero_optimization"] for ranks in (16, 4, 1)]
    assert [policy["zero_hpz_partition_size"] for policy in policies] == [8, 4, 1]


def test_corrupt_weights_folders(case: Case) -> None:
    from tests.support.tiny_towers import save_tiny_bert, save_tiny_opt, save_tiny_vision

    save_tiny_vision(case.folder / "vision")
    tensors = case.folder / "vision" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert "vision" in case.fault(case.recipe(), f"vision.name=local-dir:{case.folder / 'vision'}")
    (case.folder / "vision" / "config.json").unlink()
    assert "vision" in case.fault(case.recipe(), f"vision.name=local-dir:{case.folder / 'vision'}")

    save_tiny_bert(case.folder / "bert")
    (case.folder / "bert" / "model.safetensors").unlink()
    assert "qformer.bert" in case.fault(case.recipe(), f"qformer.bert={case.folder / 'bert'}")

    save_tiny_opt(case.folder / "opt")
    tensors = case.folder / "opt" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    assert "opt" in case.fault(case.recipe(2, "opt"), f"language.name={case.folder / 'opt'}")


def test_t5_in_fp16(case: Case) -> None:
    line = case.fault(case.recipe(2, "t5"), "language.precision=fp16")
    assert "fp16" in line and "bf16" in line


def test_initial_weights_that_do_not_fit(case: Case) -> None:
    recipe = parse_recipe(case.recipe())
    whole = native.save_weights(build_stage1(recipe, 32), recipe, 5, case.folder)
    tensors, spoilt = load_file(whole), case.folder / "spoilt.safetensors"
    metadata = {"format": native.FORMAT, "step": "5", "recipe": recipe.model_dump_json()}
    bias = "vision_proj.bias"
    faults = {
        "missing": ({name: tensor for name, tensor in tensors.items() if name != bias}, metadata, bias),
        "extra": (tensors | {"odd": torch.zeros(1)}, metadata, "odd"),
        "misshapen": (tensors | {bias: torch.zeros(3)}, metadata, bias),
        "format": (tensors, metadata | {"format": "other"}, "other"),
        "no recipe": (tensors, {"format": native.FORMAT}, "recipe"),
        "torn recipe": (tensors, metadata | {"recipe": "{"}, "recipe"),
    }
    for content, about, named in faults.values():
        save_file(content, spoilt, metadata=about)
        line = case.fault(case.recipe(), f"init_weights={spoilt}")
        assert named in line and (str(spoilt) in line)
    spoilt.write_bytes(whole.read_bytes()[:-9])
    assert str(spoilt) in case.fault(case.recipe(), f"init_weights={spoilt}")
    assert "qformer" in case.fault(case.recipe(), f"init_weights={whole}", "qformer.num_query_tokens=5")

    unfinished = case.folder / "checkpoints" / "step_00000005"
    unfinished.mkdir(parents=True)
    whole.rename(unfinished / native.FILE_NAME)
    for path in (unfinished, case.folder):
        assert str(path) in case.fault(case.recipe(), f"init_weights={path}")


def test_a_port_in_use(case: Case) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in launched.items():
            case.monkeypatch.setenv(name, str(value))
        line = case.fault(case.recipe(), "batch.global_size=4")
    assert f"MASTER_PORT 127.0.0.1:{port}" in line and "--master_port" in line


def test_an_output_that_cannot_be_written(case: Case) -> None:
    (case.folder / "file").write_text("")
    assert str(case.folder / "file") in case.fault(case.recipe(), f"run.output={case.folder / 'file' / 'run'}")
