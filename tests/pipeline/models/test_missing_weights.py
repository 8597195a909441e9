"""A tower whose files lack tensors, or hold two sets that differ, is refused by name: no part of it is random."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import weight_sets
from pipeline.config import Language, Vision
from pipeline.config import QFormer as QFormerSettings
from pipeline.models.build import load_bert, qformer_shape
from pipeline.models.fingerprint import fingerprint
from pipeline.models.language import build_language
from pipeline.models.qformer import QFormer, TextPath
from pipeline.models.vision import build_vision
from pipeline.weight_sets import check_weight_sets
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_timm, save_tiny_bert, save_tiny_opt, save_tiny_t5
from tests.support.tiny_zoo import PATCH_PX, VISION_SIZE, save_transformers_vision


def take_away(folder: Path, unwanted: Callable[[str], bool]) -> list[str]:
    """Remove tensors from a folder's weights; returns their names."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    gone = [name for name in tensors if unwanted(name)]
    assert gone
    save_file({name: tensors[name] for name in tensors if name not in gone}, path, metadata={"format": "pt"})
    return gone


def vision(name: str) -> Vision:
    return Vision(name=name, precision="fp32", image_size_px=IMAGE_SIZE_PX)


@pytest.mark.parametrize("save", [save_tiny_opt, save_tiny_t5])
def test_a_language_model_without_some_tensors_is_refused(save: Callable[[Path], str], tmp_path: Path) -> None:
    folder = save(tmp_path / "words")
    settings = Language(name=folder, precision="fp32")
    build_language(settings, "cpu")
    gone = take_away(Path(folder), lambda name: ".1." in name)
    with pytest.raises(ValueError, match=rf"language.name '{folder}'.*lack .*{min(gone)}.* and {len(gone) - 3} more"):
        build_language(settings, "cpu")


def test_an_encoder_of_transformers_needs_what_its_tokens_depend_on_alone(tmp_path: Path) -> None:
    name = save_transformers_vision(tmp_path / "eyes", "CLIPVisionConfig", "CLIPModel")
    last = VISION_SIZE["num_hidden_layers"] - 1
    take_away(tmp_path / "eyes", lambda key: "text_model" in key or f".layers.{last}." in key or "post_" in key)
    build_vision(vision(name))
    [gone] = take_away(tmp_path / "eyes", lambda key: key == "vision_model.encoder.layers.0.mlp.fc1.bias")
    with pytest.raises(ValueError, match=f"vision.name.*lack {gone}"):
        build_vision(vision(name))


def test_a_pooler_that_nobody_reads_is_the_same_at_every_start(tmp_path: Path) -> None:
    name = save_transformers_vision(tmp_path / "eyes", "ViTConfig", "ViTModel")
    take_away(tmp_path / "eyes", lambda key: "pooler" in key)
    prints = []
    for seed in range(2):
        torch.manual_seed(seed)
        prints.append(fingerprint(build_vision(vision(name))))
    assert prints[0] == prints[1]


def test_a_timm_folder_that_was_made_to_classify_is_refused_too(tmp_path: Path) -> None:
    size = {"img_size": IMAGE_SIZE_PX, "patch_size": PATCH_PX, "embed_dim": 24, "depth": 3, "num_heads": 4}
    name = save_timm(tmp_path / "eyes", 0, "vit_base_patch32_clip_224", size)
    path = tmp_path / "eyes" / "config.json"
    config = json.loads(path.read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 5
    config["pretrained_cfg"]["classifier"] = "head"
    path.write_text(json.dumps(config))
    head = {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    weights = tmp_path / "eyes" / "model.safetensors"
    save_file(load_file(weights) | head, weights)
    whole = build_vision(vision(name))
    assert not any("head" in each for each, _ in whole.named_parameters())
    take_away(tmp_path / "eyes", lambda key: key == "blocks.0.mlp.fc1.bias")
    with pytest.raises(ValueError, match=r"vision.name.*blocks\.0\.mlp\.fc1\.bias"):
        build_vision(vision(name))


@pytest.mark.parametrize("text", ["write", "none"])
def test_bert_may_lack_its_prediction_head_alone(
    text: TextPath, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = QFormerSettings(bert=save_tiny_bert(tmp_path / "bert"), num_query_tokens=4)
    qformer = QFormer(qformer_shape(settings, image_width=24), text)
    take_away(tmp_path / "bert", lambda name: name.startswith("cls."))
    with caplog.at_level(logging.WARNING, "pipeline"):
        load_bert(qformer, settings)
    assert ("no prediction head" in caplog.text) == (text == "write")
    [gone] = take_away(tmp_path / "bert", lambda name: name == "bert.encoder.layer.0.output.dense.bias")
    with pytest.raises(ValueError, match=f"qformer.bert '{settings.bert}'.*lack {gone}"):
        load_bert(qformer, settings)


def sharded(model: transformers.PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def test_two_sets_of_weights_in_a_folder_must_agree(tmp_path: Path) -> None:
    folder = tmp_path / "opt"
    save_tiny_opt(folder)
    model = transformers.OPTForCausalLM.from_pretrained(folder)
    state: dict[str, Tensor] = model.state_dict()
    for legacy in (True, False):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        check_weight_sets(folder)
    torch.save({name: tensor.half() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    check_weight_sets(folder)  # a rounded copy
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    check_weight_sets(folder)
    (folder / "pytorch_model.bin").unlink()

    whole = (folder / "model.safetensors").read_bytes()
    sharded(model, folder)
    (folder / "model.safetensors").write_bytes(whole)
    check_weight_sets(folder)
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.weight[-1] += 0.1
    sharded(model, folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"language.name.*model.safetensors and model.safetensors.index.json .*fc2"):
        build_language(Language(name=str(folder), precision="fp32"), "cpu")


def test_two_sets_that_differ_in_one_value_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is: in the middle of a part, or at its end; in parts of a few rows."""
    monkeypatch.setattr(weight_sets, "PART", 64)
    state = {"a": torch.randn(50, 3, 7), "b": torch.randn(9), "c": torch.tensor(2.0), "d": torch.zeros(0, 4)}
    state["b"][4] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    check_weight_sets(tmp_path)
    for name, place in (("a", (23, 1, 3)), ("a", (0, 0, 0)), ("a", (49, 2, 6)), ("b", (5,)), ("c", ())):
        changed = {key: tensor.clone() for key, tensor in state.items()}
        changed[name][place] += 1e-3
        torch.save(changed, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=f"differ in '{name}'"):
            check_weight_sets(tmp_path)
