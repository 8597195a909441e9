"""Native weights as a file of LAVIS or a folder of transformers, with notes on what has no place there.

An image encoder that was trained goes along. transformers' folders hold the recipe's towers, LAVIS's files none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Recipe
from pipeline.config.checks import QUANTISED
from pipeline.files import sync_file
from pipeline.models import lora
from pipeline.models.build import Bridge, build_tokenizer
from pipeline.models.inference import LanguageModel, RetrievalModel
from pipeline.models.language import build_language
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.weights import huggingface, lavis, native, towers
from pipeline.weights.foreign import language_kind, refuse_questions
from pipeline.weights.huggingface_config import ADAPTER, MERGED_NOTE
from pipeline.weights.names import ENCODER

if TYPE_CHECKING:
    from torch import Tensor


def export_lavis(bridge: Bridge, recipe: Recipe, path: Path) -> list[str]:
    """Write LAVIS's `.pth`; returns notes. Raises ValueError when LAVIS has no such model."""
    refuse_questions(recipe)
    if recipe.language and recipe.language.lora.rank:
        raise ValueError(
            f"language.lora.rank {recipe.language.lora.rank}: a file of LAVIS has no place for a language model; "
            "convert to huggingface, which merges LoRA into it"
        )
    encoder: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in native.trained_tensors(bridge).items():
        (encoder if name.startswith(ENCODER) else others)[name.removeprefix(ENCODER)] = tensor
    state, notes = lavis.to_lavis(others, language_kind(recipe)), []
    if encoder:
        state |= towers.vision_to_lavis(encoder, recipe.vision.name)
        side = recipe.vision.image_size_px
        notes.append(f"LAVIS resizes no positions of such a file: give its model `image_size: {side}`")
    lavis.write_file(state, path)
    return notes


def export_huggingface(bridge: Bridge, recipe: Recipe, folder: Path) -> list[str]:
    """Write a whole folder of transformers; returns notes. Raises ValueError when it has no such model."""
    refuse_questions(recipe)
    stored = "fp32" if recipe.vision.trained else recipe.vision.precision  # a trained encoder's weights are fp32
    if stored == "fp8":  # a way to multiply, not to store
        stored = "fp16"
    recipe = recipe.model_copy(update={"vision": recipe.vision.model_copy(update={"precision": stored})})
    vision = native.evaluation_vision(recipe, bridge, "cpu")
    model: RetrievalModel | LanguageModel
    if isinstance(bridge, Stage1Bridge):
        model = RetrievalModel(recipe, vision, bridge, build_tokenizer(recipe.qformer))
    else:
        assert isinstance(bridge, Stage2Bridge) and recipe.language is not None
        if recipe.language.precision in QUANTISED:
            raise ValueError(
                f"language.precision {recipe.language.precision!r}: a folder of transformers gets the whole language "
                "model; give another, as --set language.precision=bf16"
            )
        model = LanguageModel(recipe, vision, bridge, build_language(recipe.language, "cpu"))
    merged: list[str] = []
    if isinstance(model, LanguageModel) and model.bridge.lora is not None:
        native.add_trained_lora(model.language.model, model.recipe, model.bridge)
        _save_adapter(model, folder / ADAPTER)
        lora.merge_lora(model.language.model)
        model.bridge.lora = None
        merged = [MERGED_NOTE, f"the adapter of LoRA alone is in {ADAPTER}/"]
    notes = huggingface.write_folder(model, folder) + merged
    eps = (
        f"{bridge.ln_vision.eps} here is the image encoder's own there: set vision_model.post_layernorm.eps to compare"
    )
    return [*notes, f"epsilon of ln_vision: {eps}"]


def _save_adapter(model: LanguageModel, folder: Path) -> None:
    """LoRA as peft has it: an adapter of the recipe's language model, whose layers hold the matrices."""
    from safetensors.torch import save_file

    assert model.recipe.language is not None and model.bridge.lora is not None
    config = model.language.model.peft_config[lora.ADAPTER]
    config.task_type = "SEQ_2_SEQ_LM" if model.language.kind == "seq2seq" else "CAUSAL_LM"
    config.base_model_name_or_path, config.inference_mode = model.recipe.language.name, True
    config.save_pretrained(folder)
    tensors = {}
    for name, tensor in model.bridge.lora.state_dict().items():
        layer, matrix = name.removesuffix(".weight").rsplit(".", 1)
        tensors[f"base_model.model.{layer}.lora_{matrix}.weight"] = tensor.cpu().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    for file in folder.iterdir():
        sync_file(file)
