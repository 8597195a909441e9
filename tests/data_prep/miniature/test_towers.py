"""The frozen towers: real classes load what is saved, timm sees what CLIP sees, and nothing is made twice."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data_prep.miniature.annotations import captions_of, karpathy_entry
from data_prep.miniature.rendering import render
from data_prep.miniature.scenes import GRID, SHAPES, draw_scene
from data_prep.miniature.towers.__main__ import main
from data_prep.miniature.towers.blip import PROMPT, mirror_caption
from data_prep.miniature.towers.clip import normalise
from data_prep.miniature.towers.drawings import GROUP, draw_groups, mirrored, patch_labels, scene_group
from data_prep.miniature.towers.folding import fold_first_norm
from data_prep.miniature.towers.text_samples import draw_text_sample
from data_prep.miniature.towers.vocabulary import bert_tokenizer, clip_tokenizer, opt_tokenizer, t5_tokenizer
from data_prep.miniature.truth import is_true


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A "COCO" of twelve pictures."""
    root = tmp_path_factory.mktemp("world")
    images = root / "coco" / "images" / "train2014"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for i in range(12):
        scene = draw_scene(rng, held_out="never")
        Image.fromarray(render(scene, 96, 80, rng)).save(images / f"{i}.jpg")
        entries.append(karpathy_entry(i, f"{i}.jpg", "train", captions_of(scene, 5, rng), filepath="train2014"))
    (root / "coco" / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return root


@pytest.fixture(scope="session")
def towers(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("towers")
    assert main(_arguments(world, output)) == 0
    return output


def _arguments(world: Path, output: Path, *more: str) -> list[str]:
    return ["--world", str(world), "--output", str(output), "--steps-scale", "0.002", *more]


@pytest.fixture(autouse=True, scope="session")
def offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"


def test_the_encoder_is_the_rankers_with_its_first_norm_folded_in(towers: Path) -> None:
    import timm
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(towers / "clip").eval().vision_model
    vision = timm.create_model(f"local-dir:{towers / 'vision'}", pretrained=True).eval()
    pixels = normalise(draw_groups(2, clip.config.image_size, np.random.default_rng(7)).pixels)
    with torch.no_grad():
        normed = clip(pixel_values=pixels, output_hidden_states=True).hidden_states[0]
        folded = vision._pos_embed(vision.patch_embed(pixels))[0]
        assert torch.cosine_similarity(normed, folded, dim=-1).min() > 0.99
        assert (normed - folded)[:, 0].abs().max() < 1e-5
        expected = folded
        for layer in clip.encoder.layers[:-1]:
            expected = layer(expected, attention_mask=None)
        [(patches, prefix)] = vision.forward_intermediates(
            pixels, indices=[-2], return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
    assert (torch.cat([prefix, patches], dim=1) - expected).abs().max() < 1e-4
    assert patches.shape[1] == GRID**2
    assert list(vision.pretrained_cfg["mean"]) == clip_mean(towers)


def test_a_folded_norm_has_its_weight_and_bias(towers: Path) -> None:
    """Those of a tower that is hardly trained are one and zero."""
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(towers / "clip").eval().vision_model
    pixels = normalise(draw_groups(4, clip.config.image_size, np.random.default_rng(8)).pixels)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in (clip.pre_layrnorm.weight, clip.pre_layrnorm.bias):
            parameter.add_(torch.randn_like(parameter))
        folded, normed = fold_first_norm(clip, pixels), clip.pre_layrnorm(clip.embeddings(pixels))
        patches = torch.nn.functional.conv2d(pixels, folded.kernel_C3pp, stride=clip.config.patch_size)
        found = patches.flatten(2).transpose(1, 2) + folded.positions_PC[1:]
    assert (
        torch.cosine_similarity(found, normed[:, 1:], dim=-1).median() > 0.97
    )  # the scales of few are far from the mean


def clip_mean(towers: Path) -> list[float]:
    from transformers import CLIPProcessor

    return list(CLIPProcessor.from_pretrained(towers / "clip").image_processor.image_mean)


def test_the_ranker_pools_at_the_end_token_whatever_the_padding(towers: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(towers / "clip").eval()
    tokenizer = CLIPProcessor.from_pretrained(towers / "clip").tokenizer
    caption = "a red circle"
    together = tokenizer([caption, "a small blue square left of img_2034.jpg"], padding=True, return_tensors="pt")
    with torch.no_grad():
        alone = model.text_model(**tokenizer([caption], return_tensors="pt"))
        padded = model.text_model(**together).pooler_output[0]
    assert torch.allclose(alone.pooler_output[0], alone.last_hidden_state[0, -1])
    assert torch.allclose(alone.pooler_output[0], padded, atol=1e-5)


def test_the_captioner_writes_words_of_its_vocabulary(towers: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(towers / "blip").eval()
    processor = BlipProcessor.from_pretrained(towers / "blip")
    picture = Image.fromarray(
        render(draw_scene(np.random.default_rng(0), held_out="never"), 120, 90, np.random.default_rng(1))
    )
    given = processor(images=picture, text=PROMPT, return_tensors="pt")
    said = processor.decode(model.generate(**given, max_length=12)[0], skip_special_tokens=True)
    assert said.startswith(PROMPT.strip())
    assert processor.tokenizer.convert_ids_to_tokens(model.config.text_config.bos_token_id) == "[DEC]"


def test_language_towers_load_by_their_auto_classes(towers: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

    question = "question: what colour is the circle? short answer:"
    for name, auto_class in (("t5", AutoModelForSeq2SeqLM), ("opt", AutoModelForCausalLM)):
        model = auto_class.from_pretrained(towers / name).eval()
        tokenizer = AutoTokenizer.from_pretrained(towers / name)
        encoded = tokenizer([question], return_tensors="pt")
        assert tokenizer.unk_token_id not in encoded.input_ids[0].tolist()
        assert model.generate(**encoded, max_new_tokens=3).shape[0] == 1
    bert = AutoModelForMaskedLM.from_pretrained(towers / "bert")
    assert bert.config.vocab_size == len(AutoTokenizer.from_pretrained(towers / "bert"))


def test_towers_that_stand_are_skipped_and_other_settings_are_made(
    world: Path, towers: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (towers / "bert" / "tower.json").stat().st_mtime_ns
    assert main(_arguments(world, towers, "--only", "bert", "vision")) == 0
    assert capfd.readouterr().out.count(": is already in") == 2
    assert (towers / "bert" / "tower.json").stat().st_mtime_ns == before
    assert main(_arguments(world, towers, "--only", "bert", "--seed", "1")) == 0
    assert "bert: made" in capfd.readouterr().out
    assert not list(towers.glob(".*.partial"))


def test_the_same_seed_makes_the_same_weights(world: Path, towers: Path, tmp_path: Path) -> None:
    assert main(_arguments(world, tmp_path, "--only", "t5")) == 0
    one, two = (load_file(folder / "t5" / "model.safetensors") for folder in (towers, tmp_path))
    assert [name for name, tensor in one.items() if not torch.equal(two[name], tensor)] == []


def test_a_world_without_captions_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(tmp_path, tmp_path / "out", "--only", "blip")) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"error: --world {tmp_path}: has no coco/dataset_coco.json; run data_prep.miniature.world first"


def test_tokenizers_place_their_special_tokens_as_the_real_ones() -> None:
    text = "a red circle"
    t5, opt, clip, bert = t5_tokenizer(), opt_tokenizer(), clip_tokenizer(), bert_tokenizer()
    assert t5.pad_token_id == 0 and t5(text).input_ids[-1] == t5.eos_token_id
    assert opt(text).input_ids[0] == opt.bos_token_id == opt.convert_tokens_to_ids("</s>")
    [newline] = opt("\n", add_special_tokens=False).input_ids
    assert opt(f"{text}\n").input_ids[-1] == newline and newline != opt.unk_token_id
    assert clip(text).input_ids[-1] == clip.eos_token_id != 2
    assert bert.convert_ids_to_tokens(bert("IMG_2034.jpg of a Red circle").input_ids)[-5:-1] == [
        "of",
        "a",
        "red",
        "circle",
    ]
    for tokenizer in (t5, opt, clip, bert):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_groups_share_words_and_labels_lie_where_things_stand() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        group = scene_group(rng)
        assert len(group) == GROUP == len(set(group))
        for scene in group:
            shapes = patch_labels(scene, GRID)[:, 0]
            for thing in scene.things:
                cell = int(thing.y * GRID) * GRID + int(thing.x * GRID)
                assert shapes[cell] == SHAPES.index(thing.shape)
            assert (shapes >= 0).sum() == len(scene.things)


def test_a_mirrored_caption_is_true_of_the_mirrored_scene() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = draw_scene(rng, held_out="some")
        [caption] = captions_of(scene, 1, rng)
        assert is_true(mirror_caption(caption), mirrored(scene)), caption


def test_text_samples_can_be_answered_from_their_description() -> None:
    rng = np.random.default_rng(0)
    samples = [draw_text_sample(rng) for _ in range(2000)]
    for sample in samples:
        asks_colour = sample.prompt.startswith("question: what colour")
        if sample.description and asks_colour:
            assert sample.target in sample.description.split()
    blind = sum(not sample.description for sample in samples) / len(samples)
    assert 0.05 < blind < 0.15
