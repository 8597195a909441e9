"""Any encoder with any language model: a training step and a generation, of families that no code names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import Language, Recipe, Vision, parse_recipe
from pipeline.data.stream import Sample
from pipeline.models.encoders import vision_width
from pipeline.models.inference import LanguageModel
from pipeline.models.language import CausalTower, Decoding, build_language
from pipeline.models.trial import try_language, try_vision
from pipeline.models.vision import build_vision
from pipeline.tokens import Tokens
from pipeline.training.parts import build_parts
from pipeline.training.task import StepPlace
from tests.support.tiny_towers import IMAGE_SIZE_PX, tiny_recipe
from tests.support.tiny_zoo import PATCH_PX, save_language_family, save_timm_family, save_transformers_vision

T5_V1_1 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip
NEOX = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISIONS: dict[str, tuple[str, ...]] = {
    "siglip (timm)": ("vit_base_patch16_siglip_224",),
    "dinov2 with registers (timm)": ("vit_small_patch14_reg4_dinov2",),
    "clip (transformers)": ("CLIPVisionConfig", "CLIPModel"),
    "dinov2 (transformers)": ("Dinov2Config", "Dinov2Model"),
    "siglip (transformers)": ("SiglipVisionConfig", "SiglipVisionModel"),
}
LANGUAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {}),
    "t5 v1.1": ("T5Config", "T5ForConditionalGeneration", T5_V1_1),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", NEOX),
}
TEXTS = ["a red picture", "dark blue number 3 light green photo", "yellow", "the colour of a photo"]


def save_vision(kind: str, folder: Path) -> str:
    parts = VISIONS[kind]
    return save_timm_family(folder, *parts) if len(parts) == 1 else save_transformers_vision(folder, *parts)


def samples() -> list[Sample]:
    import random

    generator = torch.Generator().manual_seed(0)
    size = (len(TEXTS), 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return [
        Sample(key=str(number), pixels_3SS=pixels[number], caption=text, rng=random.Random(number), corrupt=0)
        for number, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize(("vision", "language"), list(zip(VISIONS, LANGUAGES, strict=True)), ids=str)
def test_a_step_lowers_the_loss_and_text_is_generated(vision: str, language: str, tmp_path: Path) -> None:
    config_class, model_class, more = LANGUAGES[language]
    content: dict[str, Any] = tiny_recipe(tmp_path, tmp_path / "manifest.json", tmp_path / "run", 2, "opt")
    content["vision"] = {"name": save_vision(vision, tmp_path / "eyes"), "precision": "fp32"}
    content["vision"]["image_size_px"] = IMAGE_SIZE_PX
    folder = save_language_family(tmp_path / "words", config_class, model_class, **more)
    content["language"] = {"name": folder, "precision": "fp32"}
    recipe: Recipe = parse_recipe(content)
    assert vision_width(recipe.vision) == 24
    task, collate = build_parts(recipe, "cpu")
    frozen = [tensor.clone() for tensor in task.towers.language.model.parameters()]  # type: ignore[union-attr]
    batch = collate(samples())
    place = StepPlace(0, 1 / int(batch.target.is_token.sum()), batch.target.ids.shape[1], 0)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    task.eval()
    losses = []
    for _ in range(3):
        loss = task(batch, place)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    bridge: Any = task.bridge
    assert all(parameter.grad is not None for parameter in bridge.parameters())
    after = task.towers.language.model.parameters()  # type: ignore[union-attr]
    assert all(torch.equal(one, other) and other.grad is None for one, other in zip(frozen, after, strict=True))
    towers: Any = task.towers
    model = LanguageModel(recipe, towers.vision, bridge, towers.language)
    said = model.generate(batch.pixels_B3SS, ["a photo of"] * len(TEXTS), Decoding(2, 6, 2))
    assert len(said) == len(TEXTS) and all(said)


LLAMAS_KEYS = "model.layers.1.self_attn.k_proj"
KEYS = {
    "t5 v1.1": "decoder.block.1.layer.1.EncDecAttention.k",
    "gpt-neox": "gpt_neox.layers.1.attention.query_key_value",
}
READ_ONCE_A_BEAM = ("gemma2",)  # sliding windows: their caches are left alone


@pytest.mark.parametrize("kind", LANGUAGES)
def test_a_prompt_is_read_once_for_all_beams_and_what_is_written_is_what_generate_writes(
    kind: str, tmp_path: Path
) -> None:
    """Of prompts of unequal length, so that the shorter ones are padded. What was read: rows of keys projected."""
    config_class, model_class, more = LANGUAGES[kind]
    folder = save_language_family(tmp_path, config_class, model_class, **more)
    tower: Any = build_language(Language(name=folder, precision="fp32"), "cpu")
    prompts_BQH = torch.randn(len(TEXTS), 3, tower.width, generator=torch.Generator().manual_seed(0))
    is_causal = isinstance(tower, CausalTower)
    inputs = tower._inputs(prompts_BQH, tower._tokenise(TEXTS, padding_side="left" if is_causal else "right"))
    assert not inputs[1].all()
    decoding = Decoding(num_beams=4, max_new_tokens=6)
    plain = tower._generate(inputs, decoding, **({"eos_token_id": tower.end_token_id} if is_causal else {}))
    read: list[int] = []
    tower.model.get_submodule(KEYS.get(kind, LLAMAS_KEYS)).register_forward_pre_hook(
        lambda _module, given: read.append(given[0][..., 0].numel())
    )
    assert tower.generate(prompts_BQH, TEXTS, decoding) == plain and len(set(plain)) > 1
    positions = inputs[1].numel()
    if not is_causal:
        assert read == [positions]
    elif kind in READ_ONCE_A_BEAM:
        assert read[0] == 4 * positions
    else:
        assert read[:2] == [positions - len(TEXTS), 4 * len(TEXTS)]


@pytest.mark.parametrize("kind", ["llama", "t5 v1.1"])
@pytest.mark.parametrize("setting", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_a_models_own_wish_for_its_cache_is_left_to_generate(
    kind: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    config_class, model_class, more = LANGUAGES[kind]
    settings = Language(name=save_language_family(tmp_path, config_class, model_class, **more), precision="fp32")
    prompts_BQH = torch.randn(len(TEXTS), 3, 32, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(num_beams=4, max_new_tokens=6)
    expected = build_language(settings, "cpu").generate(prompts_BQH, TEXTS, decoding)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | setting))
    assert build_language(settings, "cpu").generate(prompts_BQH, TEXTS, decoding) == expected


@pytest.mark.parametrize("kind", VISIONS)
def test_a_tower_gives_the_second_to_last_blocks_tokens(kind: str, tmp_path: Path) -> None:
    """As the whole model computes them when it is asked for all its hidden states."""
    name = save_vision(kind, tmp_path / "eyes")
    tower = build_vision(Vision(name=name, precision="fp32", image_size_px=IMAGE_SIZE_PX))
    pixels = torch.stack([sample.pixels_3SS for sample in samples()])
    normalised = (pixels.float() - tower.get_buffer("mean")) / tower.get_buffer("std")
    torch.testing.assert_close(tower(pixels), whole_models_tokens(name, normalised), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def whole_models_tokens(name: str, normalised: Tensor) -> Tensor:
    kind, _, folder = name.partition(":")
    if kind == "transformers":
        from transformers import AutoModel

        model: Any = AutoModel.from_pretrained(folder).eval()
        states = getattr(model, "vision_model", model)(pixel_values=normalised, output_hidden_states=True).hidden_states
        return states[-2]  # type: ignore[no-any-return]
    import timm

    timm_model: Any = timm.create_model(name, pretrained=True, num_classes=0, img_size=IMAGE_SIZE_PX).eval()
    outputs: list[Tensor] = []
    timm_model.blocks[-2].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    timm_model(normalised)
    return outputs[0]


@pytest.mark.parametrize("kind", ["clip (transformers)", "dinov2 (transformers)", "siglip (transformers)"])
def test_transformers_encoders_interpolate_positions(kind: str, tmp_path: Path) -> None:
    size_px = IMAGE_SIZE_PX * 2
    tower = build_vision(Vision(name=save_vision(kind, tmp_path / "eyes"), precision="fp32", image_size_px=size_px))
    tokens = tower(torch.zeros(1, 3, size_px, size_px, dtype=torch.uint8))
    assert tokens.shape[1] - (size_px // PATCH_PX) ** 2 in (0, 1)  # CLS or none


SWIN = {
    "embed_dim": 12, "depths": [1, 2, 2], "num_heads": [2, 2, 2], "window_size": 4, "patch_size": 4,
    "num_attention_heads": None, "num_hidden_layers": None, "hidden_size": None,
}  # fmt: skip
NO_ENCODERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "draws patches": ("ViTMAEConfig", "ViTMAEModel", {}, "other tokens for the same picture"),
    "no fixed grid": ("Siglip2VisionConfig", "Siglip2VisionModel", {"num_patches": 16}, "cannot encode a picture"),
    "windows": ("SwinConfig", "SwinModel", SWIN, "cannot encode a picture"),
    "no transformer": ("ConvNextConfig", "ConvNextModel", {"hidden_sizes": [8] * 4, "depths": [1] * 4}, "plain ViT"),
}


@pytest.mark.parametrize("kind", NO_ENCODERS)
def test_a_model_that_cannot_be_the_encoder_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    config_class, model_class, more, named = NO_ENCODERS[kind]
    name = save_transformers_vision(tmp_path / "eyes", config_class, model_class, **more)
    settings = Vision(name=name, precision="fp32", image_size_px=IMAGE_SIZE_PX)
    with pytest.raises(ValueError, match=named) as refused:
        try_vision(build_vision(settings), settings)
    assert str(tmp_path / "eyes") in str(refused.value) and "\n" not in str(refused.value)


def test_a_size_that_the_encoder_cannot_take_is_refused_in_one_line(tmp_path: Path) -> None:
    name = save_transformers_vision(tmp_path / "eyes", "Aimv2VisionConfig", "Aimv2VisionModel")
    settings = Vision(name=name, precision="fp32", image_size_px=IMAGE_SIZE_PX + PATCH_PX)
    with pytest.raises(ValueError, match=f"cannot encode a picture of {settings.image_size_px} px"):
        try_vision(build_vision(settings), settings)


BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "decoder_start_token_id": 1,
}  # fmt: skip


def test_a_seq2seq_model_without_its_own_shift_is_shifted_as_it_shifts_labels(tmp_path: Path) -> None:
    """The loss that M2M100 itself computes from labels, with soft prompts before the context."""
    folder = save_language_family(tmp_path / "words", "M2M100Config", "M2M100ForConditionalGeneration", **BART)
    settings = Language(name=folder, precision="fp32")
    tower = build_language(settings, "cpu")
    try_language(tower, settings)
    prompts, context = torch.randn(2, 3, 32), Tokens(torch.tensor([[4, 5], [6, 0]]), torch.tensor([[1, 1], [1, 0]]) > 0)
    target = Tokens(torch.tensor([[7, 8, 9], [4, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]) > 0)
    embeddings = torch.cat([prompts, tower.model.get_input_embeddings()(context.ids)], dim=1)
    mask = torch.cat([torch.ones(2, 3), context.is_token], dim=1)
    labels = target.ids.masked_fill(~target.is_token, -100)
    theirs = tower.model(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss * 5
    torch.testing.assert_close(tower.loss_sum(prompts, context, target), theirs, rtol=1e-6, atol=1e-6)


def test_a_model_that_takes_no_soft_prompts_is_refused_in_one_line(tmp_path: Path) -> None:
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    folder = save_language_family(tmp_path / "words", "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", **size)
    settings = Language(name=folder, precision="fp32")
    with pytest.raises(ValueError, match="does not work with soft prompts"):
        try_language(build_language(settings, "cpu"), settings)


@pytest.mark.parametrize("end_text", ["", "no-such-word"])
def test_an_end_that_the_tokenizer_does_not_know_is_refused(end_text: str, tmp_path: Path) -> None:
    folder = save_language_family(tmp_path / "words", *LANGUAGES["llama"][:2])
    with pytest.raises(ValueError, match=r"language\.end_text"):
        build_language(Language(name=folder, precision="fp32", end_text=end_text), "cpu")
