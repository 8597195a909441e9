"""Conversion between native, LAVIS and transformers: the same numbers, each tensor accounted for, hostile files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.config import parse_recipe
from pipeline.convert import main
from pipeline.models.build import build_bridge
from pipeline.models.inference import LanguageModel, RetrievalModel
from pipeline.models.language import Decoding
from pipeline.models.vision import build_vision
from pipeline.weights.native import FILE_NAME, load_model, read_weights, save_weights
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import IMAGE_SIZE_PX, save_tiny_eva, save_tiny_t5, tiny_recipe

KINDS = ("stage1", "t5", "opt")
NOT_IN_TRANSFORMERS = 6  # the ITG head's two weights and three biases, and the temperature


@pytest.fixture(scope="module")
def natives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A native weights folder of each kind, on tiny towers of EVA's architecture, with the recipe as YAML beside it."""
    root = tmp_path_factory.mktemp("convert")
    (root / "towers").mkdir()
    save_tiny_eva(root / "towers" / "vision")
    folders = {}
    save_tiny_t5(root / "towers" / "t5")
    untie_head(root / "towers" / "t5")
    for kind in KINDS:
        language = None if kind == "stage1" else kind
        content = tiny_recipe(root / "towers", root / "manifest.json", root / "run", 2 if language else 1, language)
        recipe = parse_recipe(content)
        folders[kind] = root / kind
        folders[kind].mkdir()
        (folders[kind] / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))  # JSON is YAML
        save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, folders[kind])
    return folders


def untie_head(folder: Path) -> None:
    """Give a T5 a head of its own, as FlanT5 has."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn(tensors["shared.weight"].shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"tie_word_embeddings": False, "scale_decoder_outputs": False})
    )


def convert(source: Path, destination: Path, read_as: str, write_as: str, *more: object) -> int:
    return main([str(each) for each in (source, destination, "--from", read_as, "--to", write_as, *more)])


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def pixels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX), generator=generator, dtype=torch.uint8)


def normalised(model: LanguageModel | RetrievalModel, pixels_B3SS: Tensor) -> Tensor:
    """As their processor does it, to compare what comes after."""
    return (pixels_B3SS.float() - model.vision.get_buffer("mean")) / model.vision.get_buffer("std")


@pytest.mark.parametrize("kind", KINDS)
def test_the_round_trip_through_lavis_is_exact(kind: str, natives: dict[str, Path], tmp_path: Path) -> None:
    assert convert(natives[kind], tmp_path / "w.pth", "native", "lavis") == 0
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    if kind == "stage1":
        assert state["temp"].shape == () and "Qformer.bert.encoder.layer.0.output.dense.weight" in state
        tied = state["Qformer.cls.predictions.decoder.weight"]
        assert torch.equal(tied, state["Qformer.bert.embeddings.word_embeddings.weight"])
    else:
        assert f"{kind}_proj.weight" in state and not any("intermediate.dense" in name for name in state)
    recipe = natives[kind] / "recipe.yaml"
    assert convert(tmp_path / "w.pth", tmp_path / "back", "lavis", "native", "--recipe", recipe) == 0
    before, after = read_weights(natives[kind]), read_weights(tmp_path / "back")
    assert before[0] == after[0] and same_bits(before[1], after[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_round_trip_through_transformers_is_exact_but_for_what_it_lists(
    kind: str, natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(natives[kind], tmp_path / "hf", "native", "huggingface") == 0
    (tmp_path / "by_hand").touch()
    usual_mode = (tmp_path / "by_hand").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "hf").iterdir()} == {usual_mode}, "others may read it too"
    assert (natives[kind] / FILE_NAME).stat().st_mode == usual_mode
    lost = [line.split()[-1] for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert lost == [] if kind != "stage1" else len(lost) == NOT_IN_TRANSFORMERS
    notes = json.loads((tmp_path / "hf" / "conversion.json").read_text())["notes"]
    assert [note.split()[-1] for note in notes if "left out" in note] == lost and "ln_vision" in notes[-1]
    recipe = natives[kind] / "recipe.yaml"
    assert convert(tmp_path / "hf", tmp_path / "back", "huggingface", "native", "--recipe", recipe) == 0
    (_, before), (_, after) = read_weights(natives[kind]), read_weights(tmp_path / "back")
    assert before.keys() == after.keys()
    held = [name for name in before if name not in lost]
    assert same_bits({name: before[name] for name in held}, {name: after[name] for name in held})


def test_an_fp8_image_encoder_is_stored_in_fp16(
    natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, _ = read_weights(natives["stage1"])
    fp8 = recipe.model_copy(update={"vision": recipe.vision.model_copy(update={"precision": "fp8"})})
    (tmp_path / "fp8").mkdir()
    save_weights(build_bridge(fp8), fp8, 7, tmp_path / "fp8")
    assert convert(tmp_path / "fp8", tmp_path / "hf", "native", "huggingface") == 0
    stored = load_file(tmp_path / "hf" / "model.safetensors")["vision_model.encoder.layers.0.mlp.fc1.weight"]
    encoder = build_vision(recipe.vision).encoder.model
    assert torch.equal(stored, encoder.blocks[0].mlp.fc1.weight.half())
    assert "towers are stored as the recipe holds them, in fp16" in capsys.readouterr().err


def test_stage_1_scores_equal_those_of_transformers(natives: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Blip2ForImageTextRetrieval

    assert convert(natives["stage1"], tmp_path / "hf", "native", "huggingface") == 0
    theirs: Any = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "hf").eval()
    theirs.vision_model.post_layernorm.eps = 1e-5
    ours = load_model(natives["stage1"], "cpu")
    assert isinstance(ours, RetrievalModel)
    images, texts = pixels(3), ["a red picture", "the number of green", "is a dark light blue yellow photo"]
    tokens = ours.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        seen = theirs.vision_model(normalised(ours, images)).last_hidden_state
        torch.testing.assert_close(ours.bridge.ln_vision(ours.encode_images(images)), seen, rtol=1e-5, atol=1e-5)
        cosines = theirs(normalised(ours, images), **tokens).logits_per_image
        matches = theirs(normalised(ours, images), **tokens, use_image_text_matching_head=True).logits_per_image
    frozen = ours.encode_images(images)
    own_cosines = (ours.embed_images(frozen) @ ours.embed_texts(ours.tokenise(texts)).T).amax(dim=1)
    torch.testing.assert_close(own_cosines, cosines, rtol=1e-5, atol=1e-5)
    own = torch.stack(
        [ours.match_logits(one, [ours.tokenise([text])])[0] for one, text in zip(frozen, texts, strict=True)]
    )
    torch.testing.assert_close(own, matches[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [8, 26, 35], ids=["twice", "as at 364 px", "as at 490 px"])
def test_positions_are_interpolated_as_transformers_does_it(
    grid: int, natives: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import Blip2ForImageTextRetrieval

    assert convert(natives["stage1"], tmp_path / "hf", "native", "huggingface") == 0
    theirs: Any = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "hf").eval()
    settings = read_weights(natives["stage1"])[0].vision
    size_px = grid * 8  # the tiny tower's patch
    tower = build_vision(settings.model_copy(update={"image_size_px": size_px}))
    images = torch.randint(0, 256, (2, 3, size_px, size_px), dtype=torch.uint8)
    normalised_B3SS = (images.float() - tower.get_buffer("mean")) / tower.get_buffer("std")
    with torch.no_grad():
        expected = theirs.vision_model(normalised_B3SS, interpolate_pos_encoding=True).last_hidden_state
        norm = theirs.vision_model.post_layernorm
        found = norm(tower(images))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_stage_2_generates_the_tokens_of_transformers(kind: str, natives: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    assert convert(natives[kind], tmp_path / "hf", "native", "huggingface") == 0
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    processor = Blip2Processor.from_pretrained(tmp_path / "hf")
    ours = load_model(natives[kind], "cpu")
    assert isinstance(ours, LanguageModel)
    images = pixels(64)
    prompts = [("a photo of", "question: is the picture red? answer:")[row % 2] for row in range(64)]
    given = processor(images=list(images), text=prompts, padding=True, return_tensors="pt")
    torch.testing.assert_close(given.pixel_values, normalised(ours, images))
    with torch.no_grad():
        found = theirs.generate(**given, num_beams=5, max_new_tokens=8, min_new_tokens=2, do_sample=False)
    if kind == "opt":
        found = found[:, given.input_ids.shape[1] :]  # what was given comes first
    expected = [each.strip() for each in processor.batch_decode(found, skip_special_tokens=True)]
    own_ids: list[Tensor] = []
    generate = ours.language.model.generate
    ours.language.model.generate = lambda **more: own_ids.append(generate(**more)) or own_ids[-1]
    assert ours.generate(images, prompts, Decoding(num_beams=5, max_new_tokens=8, min_new_tokens=2)) == expected
    assert torch.equal(own_ids[-1], found)
    assert len(set(expected)) > 3  # the pictures decide what is said
    others = [row ^ 2 for row in range(64)]  # other pictures, the same prompts
    said = ours.generate(images, prompts, Decoding(num_beams=5, max_new_tokens=8, min_new_tokens=2), others)
    assert said == [expected[row] for row in others] != expected


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_stage_2_logits_equal_those_of_transformers(kind: str, natives: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    assert convert(natives[kind], tmp_path / "hf", "native", "huggingface") == 0
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    theirs.vision_model.post_layernorm.eps = 1e-5
    ours = load_model(natives[kind], "cpu")
    assert isinstance(ours, LanguageModel)
    images, texts = pixels(4), ["a red picture"] * 4
    given = Blip2Processor.from_pretrained(tmp_path / "hf")(list(images), texts, padding=True, return_tensors="pt")
    decoder = {"decoder_input_ids": torch.tensor([[0, 5, 6]] * 4)} if kind == "t5" else {}
    with torch.no_grad():
        expected = theirs(**given, **decoder).logits
        prompts = ours.bridge(ours.vision(images))
        embeddings, mask = ours.language._inputs(prompts, ours.language._tokenise(texts, "right"))
        found = ours.language.model(inputs_embeds=embeddings, attention_mask=mask, **decoder).logits
    torch.testing.assert_close(found, expected[..., : found.shape[-1]], rtol=1e-5, atol=1e-5)


def test_the_exact_gelu_of_public_bridges_is_a_value_of_the_recipe(natives: dict[str, Path], tmp_path: Path) -> None:
    from transformers import Blip2ForConditionalGeneration

    recipe, edit = natives["t5"] / "recipe.yaml", "language.config.dense_act_fn=gelu"
    assert convert(natives["t5"], tmp_path / "w.pth", "native", "lavis") == 0
    assert convert(tmp_path / "w.pth", tmp_path / "n", "lavis", "native", "--recipe", recipe, "--set", edit) == 0
    exact, stock = load_model(tmp_path / "n", "cpu"), load_model(natives["t5"], "cpu")
    assert isinstance(exact, LanguageModel) and isinstance(stock, LanguageModel)
    acts = [str(model.language.model.encoder.block[0].layer[1].DenseReluDense.act) for model in (exact, stock)]
    assert acts == ["GELUActivation()", "GELUTanh()"]
    assert convert(tmp_path / "n", tmp_path / "hf", "native", "huggingface") == 0
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert str(theirs.language_model.encoder.block[0].layer[1].DenseReluDense.act) == "GELUActivation()"


def test_usage(natives: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        (natives["t5"], tmp_path / "x", "lavis", "native"),
        (natives["t5"], tmp_path / "x", "native", "lavis", "--recipe", natives["t5"] / "recipe.yaml"),
        (natives["t5"], tmp_path, "native", "lavis"),
        (natives["t5"], tmp_path / "x", "native", "lavis", "--image-encoder", tmp_path / "eyes"),
    ):
        with pytest.raises(SystemExit) as ended:
            convert(*arguments)
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
