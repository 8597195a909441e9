"""Weights fetched from a hub on loopback: safetensors alone, used afterwards without network; faults name the name."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.fetch import _check_space, main
from pipeline.weights.hub_files import MB, Wanted, _Arrived, chosen_files
from tests.support.tiny_hub import serving
from tests.support.tiny_towers import save_tiny_bert, save_tiny_opt, save_tiny_t5, save_tiny_vision, tiny_recipe

ROOT = Path(__file__).parents[2]
BOT = {"num": 4, "title": "Adding `safetensors` variant of this model", "author": {"name": "SFconvertbot"}}
BUILD = """
import sys
from pathlib import Path
from pipeline.config import load_recipe
from pipeline.models.build import build_stage1, build_tokenizer
from pipeline.models.language import build_language
from pipeline.models.vision import build_vision

for path in sys.argv[1:]:
    recipe = load_recipe(Path(path))
    vision = build_vision(recipe.vision)
    build_stage1(recipe, vision.width), build_tokenizer(recipe.qformer)
    print("loaded", type(build_language(recipe.language, "cpu")).__name__)
"""


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/unpickled-by-fetch",)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories tiny/vision, tiny/bert, tiny/t5, tiny/opt; each also has pickles and files of other frameworks."""
    root = tmp_path_factory.mktemp("hub")
    save_tiny_vision(root / "tiny" / "vision")
    save_tiny_bert(root / "tiny" / "bert")
    save_tiny_t5(root / "tiny" / "t5")
    save_tiny_opt(root / "tiny" / "opt@refs-pr-4")
    shutil.copytree(root / "tiny" / "opt@refs-pr-4", root / "tiny" / "opt")
    (root / "tiny" / "opt" / "model.safetensors").unlink()  # as the published ones: only a pickle on main
    for name in ("vision", "bert", "t5", "opt", "opt@refs-pr-4"):
        for other in ("pytorch_model.bin", "training_args.bin", "flax_model.msgpack", "onnx/model.onnx", "run.py"):
            (root / "tiny" / name / other).parent.mkdir(exist_ok=True)
            (root / "tiny" / name / other).write_bytes(pickle.dumps(_Bomb()))
        (root / "tiny" / name / "pytorch_model.bin.index.json").write_text("{}")
    return root


def write_recipe(folder: Path, language: str) -> Path:
    content = tiny_recipe(folder / "towers", folder / "m.json", folder / "run", 2, "t5")
    content |= {"vision": {"name": "hf-hub:tiny/vision", "precision": "fp32", "image_size_px": 32}}
    content["qformer"] |= {"bert": "tiny/bert"}  # type: ignore[operator]
    content |= {"language": {"name": language, "precision": "fp32"}}
    path = folder / f"{language.replace('/', '_')[-12:]}.yaml"
    path.write_text(json.dumps(content))
    return path


def run(
    *command: object, home: Path, endpoint: str, offline: int = 0, terminal: bool = False
) -> subprocess.CompletedProcess[str]:
    """Where it is in a terminal, both streams are in stdout."""
    told = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(offline), "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, *map(str, command)]
    words = ["script", "--quiet", "--return", "--command", shlex.join(words), "/dev/null"] if terminal else words
    return subprocess.run(
        words, env=os.environ | told, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_fetched_weights_are_safetensors_and_load_without_network(root: Path, tmp_path: Path) -> None:
    recipes, home = [write_recipe(tmp_path, name) for name in ("tiny/t5", "tiny/opt")], tmp_path / "home"
    with serving(root, {"tiny/opt": [BOT | {"author": {"name": "someone"}, "num": 3}, BOT]}) as (endpoint, hub):
        arguments = ("-m", "pipeline.fetch", *recipes, "--also", "tiny/nothing")
        answer = run(*arguments, home=home, endpoint=endpoint, terminal=True)
        assert answer.returncode == 1 and "Fetching" not in answer.stdout and "%|" not in answer.stdout, answer.stdout
        assert "tiny/nothing: the hub does not give it" in answer.stdout
        assert answer.stdout.splitlines()[-1].startswith("error: 1 of 5 repositories failed, first tiny/nothing")
        asked = list(hub.asked)
        again = run("-m", "pipeline.fetch", *recipes, home=home, endpoint=endpoint)
        assert again.returncode == 0 and hub.asked == asked, again.stderr
    assert again.stdout.splitlines()[-1] == str(home)
    endings = {name.rpartition(".")[2] for name in asked}
    assert "safetensors" in endings and endings <= {"json", "txt", "safetensors", "model"}
    assert not any("bin.index" in name for name in asked) and len(set(asked)) == len(asked)
    stored = {path.suffix for path in home.rglob("*") if path.is_file() and "snapshots" in path.parts}
    assert stored <= {".json", ".txt", ".safetensors"}
    assert "tiny/t5: language model, 0.00 GB, 0.00 GB to download" in again.stdout
    [told] = [line for line in again.stdout.splitlines() if "from a conversion" in line]
    folder = told.partition("language.name=")[2]
    converted = write_recipe(tmp_path, folder)
    loaded = run("-c", BUILD, recipes[0], converted, home=home, endpoint="http://127.0.0.1:9", offline=1)
    assert loaded.stdout.splitlines() == ["loaded Seq2SeqTower", "loaded CausalTower"], loaded.stderr
    assert not Path("/tmp/unpickled-by-fetch").exists()


def test_a_repository_of_pickles_alone_is_refused(root: Path, tmp_path: Path) -> None:
    others = [BOT | {"author": {"name": "someone"}}, BOT | {"status": "closed"}, BOT | {"title": "Update README"}]
    with serving(root, {"tiny/opt": others}) as (endpoint, hub):
        answer = run("-m", "pipeline.fetch", "--also", "tiny/opt", home=tmp_path, endpoint=endpoint)
        assert answer.returncode == 1 and not hub.asked
    assert "tiny/opt: the hub has no safetensors of it, and pickles are not taken" in answer.stderr


def test_names_are_listed_without_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, "tiny/t5")
    own = write_recipe(tmp_path, str(tmp_path))
    shipped = ROOT / "pipeline" / "recipes" / "stage2_vitg_opt2.7b.yaml"
    assert main([str(recipe), str(own), str(shipped), "--list", "--also", "a/b"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert lines == [
        f"{recipe}:", "  tiny/vision: image encoder", "  tiny/bert: Q-Former's start", "  tiny/t5: language model",
        f"{own}:", "  tiny/vision: image encoder", "  tiny/bert: Q-Former's start", f"  {tmp_path}: a local folder",
        f"{shipped}:", "  timm/eva_giant_patch14_clip_224.laion400m: image encoder",
        "  bert-base-uncased: Q-Former's start", "  facebook/opt-2.7b: language model",
        "--also:", "  a/b: also",
    ]  # fmt: skip
    assert main([str(recipe)]) == 1  # HF_HUB_OFFLINE is set for all tests
    assert "HF_HUB_OFFLINE: is set" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2


def test_what_has_arrived_is_counted_also_of_files_that_are_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "other").write_bytes(bytes(7 * MB))  # of another revision
    (blobs / "config").write_bytes(bytes(2 * MB))
    line = _Arrived(Wanted("a/b", None, ("config.json", "model.safetensors"), 10 * MB, 8 * MB, False))
    assert line.text().startswith("a/b: 2 of 10 MB (20%), ")
    (blobs / "model.incomplete").write_bytes(bytes(3 * MB))
    assert line.text().startswith("a/b: 5 of 10 MB (50%), ")


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    _check_space(10)
    with pytest.raises(ValueError, match=r"^HF_HOME .*/home: has .* GB free, but 1000000000.0 GB are to be downloaded"):
        _check_space(10**18)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ("config.json model.safetensors pytorch_model.bin", "config.json model.safetensors"),
        (
            "model.safetensors.index.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors a.txt",
            "a.txt model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json",
        ),
        ("model.safetensors model.safetensors.index.json model-00001-of-00001.safetensors", "model.safetensors"),
        ("model.safetensors open_clip_model.safetensors open_clip_config.json",
         "model.safetensors open_clip_config.json"),
        ("open_clip_model.safetensors config.json", "config.json open_clip_model.safetensors"),
        ("adapter/adapter_model.safetensors config.json conversion.json model.safetensors",  # LoRA is merged, they say
         "config.json conversion.json model.safetensors"),
        ("config.json pytorch_model.bin spiece.model", ""),
        ("config.json adapter.safetensors", ""),
        ("../model.safetensors sub/model.safetensors", ""),
        ("model.safetensors spiece.model ../config.json evil.pkl tf_model.h5", "model.safetensors spiece.model"),
    ],
)  # fmt: skip
def test_one_set_of_safetensors_and_no_pickle_is_chosen(there: str, taken: str) -> None:
    assert chosen_files(there.split()) == taken.split()
