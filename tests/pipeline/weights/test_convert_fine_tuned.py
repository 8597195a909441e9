"""Fine-tuned weights in the formats of others: their image encoder and its positions go along, both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.models.build import build_bridge
from pipeline.models.inference import LanguageModel, RetrievalModel
from pipeline.weights.any_format import find_weights, load_any
from pipeline.weights.foreign import LEFT_ENCODER
from pipeline.weights.names import ENCODER
from pipeline.weights.native import load_model, read_weights, save_weights
from tests.pipeline.weights.test_convert import convert, normalised, same_bits
from tests.pipeline.weights.test_convert_towers import openai_names
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_timm, save_tiny_eva, save_tiny_vision, tiny_recipe
from tests.support.tiny_zoo import save_transformers_vision

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
SIZE_PX = 48  # as 364 is to 224: the towers are of 32
GRID = SIZE_PX // 8
KINDS = ("retrieval", "opt", "t5")


def save(
    root: Path, name: str, stage: int, model: str | None, vision: str, precision: str = "fp32", **sections: Any
) -> Path:
    """Native weights of random numbers with a trained image encoder, and their recipe as YAML beside them."""
    content: dict[str, Any] = tiny_recipe(root / "towers", root / "m.json", root / "run", stage, model)
    trained = {"name": vision, "trained": True, "image_size_px": SIZE_PX, "precision": precision}
    for section, fields in ({"vision": trained} | sections).items():
        content[section] = content.get(section, {}) | fields
    recipe = parse_recipe(content)
    folder = root / name
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))  # JSON is YAML
    save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tuned")
    (root / "towers").mkdir()
    eva = save_tiny_eva(root / "towers" / "vision")
    asks = {"qformer": {"question": "question"}, "data": {"sample": "question"}}
    return {
        "retrieval": save(root, "retrieval", 1, None, eva),
        "opt": save(root, "opt_captions", 2, "opt", eva),
        "t5": save(root, "t5_captions", 2, "t5", eva, precision="bf16"),
        "clip": save(root, "clip", 1, None, save_tiny_vision(root / "clip_vision")),
        "vqa": save(root, "vqa", 2, "opt", eva, **asks, language={"prompt": "question {} answer"}),
    }


def encoder_of(native: Path) -> dict[str, Tensor]:
    """The trained image encoder under timm's names."""
    tensors = read_weights(native)[1]
    return {name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}


def exported(native: Path, folder: Path, write_as: str) -> Path:
    place = folder / ("w.pth" if write_as == "lavis" else "w")
    assert convert(native, place, "native", write_as) == 0
    return place


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line of a conversion that fails and leaves nothing."""
    capsys.readouterr()
    assert convert(*arguments) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert not arguments[1].exists()
    return line


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE_PX, SIZE_PX), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_the_round_trip_through_lavis_keeps_every_bit_of_the_encoder(
    kind: str, tuned: dict[str, Path], tmp_path: Path
) -> None:
    file = exported(tuned[kind], tmp_path, "lavis")
    state = torch.load(file, weights_only=True)["model"]
    eyes = {name.removeprefix("visual_encoder."): t for name, t in state.items() if name.startswith("visual_encoder.")}
    expected = encoder_of(tuned[kind])
    assert expected["pos_embed"].shape == (1, 1 + GRID**2, 32) and "blocks.2.norm1.weight" not in expected
    assert same_bits(eyes, openai_names(expected) if kind == "clip" else expected)
    assert f"image_size: {SIZE_PX}" in file.with_name("w.pth.conversion.json").read_text()
    assert convert(file, tmp_path / "back", "lavis", "native", "--recipe", tuned[kind] / "recipe.yaml") == 0
    before, after = read_weights(tuned[kind]), read_weights(tmp_path / "back")
    assert before[0] == after[0] and same_bits(before[1], after[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_round_trip_through_transformers_keeps_every_bit_of_the_encoder(
    kind: str, tuned: dict[str, Path], tmp_path: Path
) -> None:
    folder = exported(tuned[kind], tmp_path, "huggingface")
    lost = [note.split()[-1] for note in notes_of(folder) if "left out" in note]
    assert bool(lost) == (kind == "retrieval")
    assert convert(folder, tmp_path / "back", "huggingface", "native", "--recipe", tuned[kind] / "recipe.yaml") == 0
    (_, before), (_, after) = read_weights(tuned[kind]), read_weights(tmp_path / "back")
    assert before.keys() == after.keys() and not any(name.startswith(ENCODER) for name in lost)
    held = [name for name in before if name not in lost]
    assert same_bits({name: before[name] for name in held}, {name: after[name] for name in held})
    again = exported(tmp_path / "back", tmp_path / "back", "lavis")
    listed = [note.split()[-1] for note in notes_of(again) if "as in a fresh bridge" in note]
    assert listed == lost and not any(LEFT_ENCODER in note for note in notes_of(again))


def notes_of(place: Path) -> list[str]:
    path = place / "conversion.json" if place.is_dir() else place.with_name(f"{place.name}.conversion.json")
    notes: list[str] = json.loads(path.read_text())["notes"]
    return notes


def test_transformers_scores_pictures_of_the_trained_size_as_we_do(tuned: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Blip2ForImageTextRetrieval

    theirs: Any = Blip2ForImageTextRetrieval.from_pretrained(exported(tuned["retrieval"], tmp_path, "huggingface"))
    assert theirs.eval().config.vision_config.image_size == SIZE_PX
    theirs.vision_model.post_layernorm.eps = 1e-5
    ours = load_model(tuned["retrieval"], "cpu")
    assert isinstance(ours, RetrievalModel)
    images, texts = pixels(3), ["a red picture", "the number of green", "is a dark light blue yellow photo"]
    given = dict(ours.tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=normalised(ours, images))
    with torch.no_grad():
        seen = theirs.vision_model(given["pixel_values"]).last_hidden_state
        cosines = theirs(**given).logits_per_image
        matches = theirs(**given, use_image_text_matching_head=True).logits_per_image[:, 1]
        frozen = ours.encode_images(images)
        torch.testing.assert_close(ours.bridge.ln_vision(frozen), seen, rtol=1e-4, atol=1e-4)
    tokens = ours.tokenise(texts)
    own_cosines = (ours.embed_images(frozen) @ ours.embed_texts(tokens).T).amax(dim=1)
    torch.testing.assert_close(own_cosines, cosines, rtol=1e-4, atol=1e-4)
    pairs = zip(frozen, texts, strict=True)
    own = torch.stack([ours.match_logits(one, [ours.tokenise([text])])[0] for one, text in pairs])
    torch.testing.assert_close(own, matches, rtol=1e-4, atol=1e-4)


def test_transformers_captions_pictures_of_the_trained_size_as_we_do(tuned: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    folder = exported(tuned["opt"], tmp_path, "huggingface")
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    theirs.vision_model.post_layernorm.eps = 1e-5
    ours = load_model(tuned["opt"], "cpu")
    assert isinstance(ours, LanguageModel)
    images, texts = pixels(3), ["a photo of"] * 3
    given = Blip2Processor.from_pretrained(folder)(list(images), texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(given.pixel_values, normalised(ours, images))
    with torch.no_grad():
        expected = theirs(**given).logits
        prompts = ours.bridge(ours.vision(images))
        embeddings, mask = ours.language._inputs(prompts, ours.language._tokenise(texts, "right"))
        found = ours.language.model(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], rtol=1e-4, atol=1e-4)


def test_a_bias_of_keys_that_training_in_transformers_made_changes_nothing(
    tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Blip2ForImageTextRetrieval

    folder = exported(tuned["retrieval"], tmp_path, "huggingface")
    tensors, name = load_file(folder / "model.safetensors"), "vision_model.encoder.layers.1.self_attn.qkv.bias"
    assert not tensors[name][32:64].any()
    tensors[name][32:64] = torch.linspace(-2, 2, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    more = ("--recipe", tuned["retrieval"] / "recipe.yaml")
    assert convert(folder, tmp_path / "back", "huggingface", "native", *more) == 0
    assert f"a bias of attention's keys, which the softmax cancels, left out: {name}\n" in capsys.readouterr().err
    theirs: Any = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    theirs.vision_model.post_layernorm.eps = 1e-5
    ours = load_model(tmp_path / "back", "cpu")
    assert isinstance(ours, RetrievalModel)
    with torch.no_grad():
        expected = theirs.vision_model(normalised(ours, pixels(2))).last_hidden_state
        found = ours.bridge.ln_vision(ours.encode_images(pixels(2)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    tensors[name] = tensors[name][:-1]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"{name!r} is not in the recipe's" in refusal(
        capsys, folder, tmp_path / "again", "huggingface", "native", *more
    )


@pytest.mark.parametrize("write_as", ["lavis", "huggingface"])
def test_evaluation_uses_the_files_own_encoder_when_the_recipe_trains_it(
    write_as: str, tuned: dict[str, Path], tmp_path: Path
) -> None:
    place, path = exported(tuned["retrieval"], tmp_path, write_as), tuned["retrieval"] / "recipe.yaml"
    seen = {}
    for name, recipe in {"own": load_recipe(path, []), "frozen": load_recipe(path, ["vision.trained=false"])}.items():
        model, notes = load_any(find_weights(place, recipe), "cpu")
        assert isinstance(model, RetrievalModel)
        seen[name] = model.encode_images(pixels(2))
        left = [note for note in notes if note.startswith(LEFT_ENCODER)]
        assert bool(left) == (name == "frozen"), left
    native = load_model(tuned["retrieval"], "cpu")
    assert isinstance(native, RetrievalModel)
    assert torch.equal(seen["own"], native.encode_images(pixels(2)))
    assert not torch.allclose(seen["frozen"], seen["own"], atol=0.1)


def test_positions_of_another_size_are_named_with_both_sizes(
    tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for write_as in ("lavis", "huggingface"):
        place = exported(tuned["opt"], tmp_path, write_as)
        for trained in ("true", "false"):
            edits = (f"vision.image_size_px={IMAGE_SIZE_PX}", f"vision.trained={trained}")
            more = ("--recipe", tuned["opt"] / "recipe.yaml", "--set", *edits)
            line = refusal(capsys, place, tmp_path / "back", write_as, "native", *more)
            assert str(SIZE_PX) in line and str(IMAGE_SIZE_PX) in line
            assert line.endswith(f"set vision.image_size_px={SIZE_PX}")


@pytest.mark.parametrize("other", ["lavis", "huggingface"])
def test_a_qformer_that_reads_questions_stays_native(
    other: str, tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, tuned["vqa"], tmp_path / "w", "native", other)
    assert line.startswith("error: qformer.question 'question': in stage 2, LAVIS and transformers have no Q-Former")
    place = exported(tuned["opt"], tmp_path, other)
    more = ("--recipe", tuned["vqa"] / "recipe.yaml")
    assert refusal(capsys, place, tmp_path / "back", other, "native", *more) == line
    assert convert(tuned["vqa"], tmp_path / "copy", "native", "native") == 0
    assert same_bits(read_weights(tuned["vqa"])[1], read_weights(tmp_path / "copy")[1])


def test_an_encoder_that_is_not_there_or_asked_for_twice_is_one_line(
    tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, recipe = exported(tuned["retrieval"], tmp_path, "lavis"), ("--recipe", tuned["retrieval"] / "recipe.yaml")
    back, eyes = tmp_path / "back", ("--image-encoder", tmp_path / "eyes")
    line = refusal(capsys, file, back, "lavis", "native", *recipe, *eyes)
    assert "the recipe trains the image encoder" in line and not (tmp_path / "eyes").exists()
    state = torch.load(file, weights_only=True)["model"]
    bridge = {name: tensor for name, tensor in state.items() if not name.startswith("visual_encoder.")}
    torch.save({"model": bridge}, file)
    assert "holds no image encoder" in refusal(capsys, file, back, "lavis", "native", *recipe)
    del state["visual_encoder.blocks.1.attn.v_bias"]
    torch.save({"model": state}, file)
    assert "'blocks.1.attn.v_bias' is missing" in refusal(capsys, file, back, "lavis", "native", *recipe)


@pytest.mark.parametrize("own", ["blocks.0.norm1.weight", "transformer.resblocks.0.norm1.weight"])
def test_a_tensor_of_the_encoder_under_our_name_has_no_place(
    own: str, tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(tuned["clip"], tmp_path, "lavis")
    state = torch.load(file, weights_only=True)["model"]
    torch.save({"model": state | {f"visual_encoder.{own}": torch.zeros(32)}}, file)
    recipe = ("--recipe", tuned["clip"] / "recipe.yaml")
    line = refusal(capsys, file, tmp_path / "back", "lavis", "native", *recipe)
    assert f"'visual_encoder.{own}' is not in the recipe's tower" in line
    folder = exported(tuned["retrieval"], tmp_path, "huggingface")
    tensors = load_file(folder / "model.safetensors") | {f"vision_model.{own}": torch.zeros(32)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    recipe = ("--recipe", tuned["retrieval"] / "recipe.yaml")
    line = refusal(capsys, folder, tmp_path / "back", "huggingface", "native", *recipe)
    assert f"'vision_model.{own}' is not in the recipe's tower" in line


def test_an_encoder_that_lavis_does_not_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "towers").mkdir()
    size = {"img_size": IMAGE_SIZE_PX, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    plain = save_timm(tmp_path / "plain", 0, "vit_base_patch16_224", size)
    clip = save_transformers_vision(tmp_path / "clip", config_class="CLIPVisionConfig", model_class="CLIPModel")
    for number, name in enumerate((plain, clip)):
        native = save(tmp_path, f"weights{number}", 1, None, name)
        line = refusal(capsys, native, tmp_path / "w.pth", "native", "lavis")
        assert line.startswith(f"error: vision.name {name!r}: LAVIS has no image encoder of its kind")


def test_the_shipped_recipes_name_what_lavis_released() -> None:
    """The encoder's names in LAVIS's fine-tuned files of ViT-g: 39 blocks of 13 tensors, and 4 before them."""
    from pipeline.weights import towers

    recipe: Recipe = load_recipe(RECIPES / "finetune_caption_opt2.7b.yaml", [])
    model = towers.vision_on_meta(recipe.vision)
    names = towers.vision_to_lavis(model.state_dict(), recipe.vision.name)
    assert len(names) == 39 * 13 + 4 and "visual_encoder.blocks.38.attn.q_bias" in names
    assert names["visual_encoder.pos_embed"].shape == (1, 1 + 26**2, 1408)
