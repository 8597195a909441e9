"""From a recipe to its parts: frozen towers, the bridge and its tokenizer; a fresh bridge starts from BERT."""

import logging
from typing import Any, cast

from torch import Tensor, nn

from pipeline.config import QFormer as QFormerSettings
from pipeline.config import Recipe
from pipeline.models.encoders import load_encoder, vision_width
from pipeline.models.language import LanguageTower, language_on_meta
from pipeline.models.loading import load_of_transformers, not_loaded, refuse_missing
from pipeline.models.lora import add_lora
from pipeline.models.qformer import QFormer
from pipeline.models.qformer_layer import Layer, QFormerShape
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import TrainedVision

log = logging.getLogger(__name__)
Bridge = Stage1Bridge | Stage2Bridge
BERT_HEAD = "cls.predictions."  # of the names of its prediction head
DECODE_TOKEN = "[DEC]"  # replaces [CLS] where text is generated (ITG); the last id of the vocabulary


def _from_bert(settings: QFormerSettings, auto_class: Any) -> Any:
    """Load one thing of the BERT folder. Raises ValueError in one line when it is missing or does not fit."""
    try:
        return auto_class.from_pretrained(settings.bert, trust_remote_code=False)
    except Exception as error:  # transformers and safetensors raise many kinds of errors
        raise _not_loaded(settings, error) from error


def _not_loaded(settings: QFormerSettings, error: Exception) -> ValueError:
    return not_loaded(f"qformer.bert {settings.bert!r}", error)


def build_tokenizer(settings: QFormerSettings) -> Any:
    """BERT's tokenizer with [DEC] added as its last id."""
    from transformers import AutoTokenizer

    tokenizer = _from_bert(settings, AutoTokenizer)
    tokenizer.add_special_tokens({"bos_token": DECODE_TOKEN})
    return tokenizer


def qformer_shape(settings: QFormerSettings, image_width: int) -> QFormerShape:
    """The sizes of the Q-Former: BERT's, one word more ([DEC]), and the image's width. Raises ValueError in one line
    for a model of another kind."""
    from transformers import AutoConfig

    bert = _from_bert(settings, AutoConfig)
    if bert.model_type != "bert":
        raise ValueError(
            f"qformer.bert {settings.bert!r}: is a model of type {bert.model_type!r}, and the Q-Former is made of a "
            "BERT; name a BERT, as bert-base-uncased"
        )
    return QFormerShape(
        width=bert.hidden_size,
        num_layers=bert.num_hidden_layers,
        num_heads=bert.num_attention_heads,
        ffn_width=bert.intermediate_size,
        vocabulary=bert.vocab_size + 1,
        max_positions=bert.max_position_embeddings,
        layer_norm_eps=bert.layer_norm_eps,
        initializer_range=bert.initializer_range,
        image_width=image_width,
        num_query_tokens=settings.num_query_tokens,
        cross_attention_every=settings.cross_attention_every,
        dropout=settings.dropout,
    )


def _shape(recipe: Recipe, image_width: int) -> QFormerShape:
    """Raises ValueError where texts may be longer than BERT's positions."""
    shape, longest = qformer_shape(recipe.qformer, image_width), recipe.data.max_text_tokens
    if (recipe.stage == 1 or recipe.qformer.question != "none") and longest > shape.max_positions:
        raise ValueError(
            f"data.max_text_tokens {longest}: the Q-Former reads such texts, and qformer.bert {recipe.qformer.bert!r} "
            f"has {shape.max_positions} positions; lower it"
        )
    return shape


def _bert_names(qformer: QFormer) -> dict[str, str]:
    """For each parameter of the Q-Former that BERT has, its name there. Queries and cross-attention have none."""
    names = {"layer_norm": "bert.embeddings.LayerNorm"}
    if qformer.language_head is not None:
        names |= {
            "language_head.transform": "cls.predictions.transform.dense",
            "language_head.layer_norm": "cls.predictions.transform.LayerNorm",
        }
    for index, layer in enumerate(qformer.layers):
        bert = f"bert.encoder.layer.{index}."
        for part in ("query", "key", "value"):
            names[f"layers.{index}.self_attention.{part}"] = f"{bert}attention.self.{part}"
        names[f"layers.{index}.self_attention.output"] = f"{bert}attention.output.dense"
        names[f"layers.{index}.self_attention.layer_norm"] = f"{bert}attention.output.LayerNorm"
        for ffn in ("query_ffn", "text_ffn") if cast(Layer, layer).text_ffn is not None else ("query_ffn",):
            names[f"layers.{index}.{ffn}.intermediate"] = f"{bert}intermediate.dense"
            names[f"layers.{index}.{ffn}.output"] = f"{bert}output.dense"
            names[f"layers.{index}.{ffn}.layer_norm"] = f"{bert}output.LayerNorm"
    return {f"{own}.{kind}": f"{bert}.{kind}" for own, bert in names.items() for kind in ("weight", "bias")}


def load_bert(qformer: QFormer, settings: QFormerSettings) -> None:
    """Copy BERT's weights into the Q-Former: self-attention, both FFNs, embeddings, prediction head."""
    from transformers import AutoModelForMaskedLM

    try:
        bert, missing = load_of_transformers(AutoModelForMaskedLM, settings.bert)
        refuse_missing([name for name in missing if not name.startswith(BERT_HEAD)])
    except Exception as error:  # as above
        raise _not_loaded(settings, error) from error
    if missing and qformer.language_head is not None:
        log.warning("qformer.bert %r has no prediction head; that of ITG starts at random", settings.bert)
    state: dict[str, Tensor] = bert.state_dict()
    own = qformer.state_dict()
    for name, bert_name in _bert_names(qformer).items():
        own[name].copy_(state[bert_name])
    words = state["bert.embeddings.word_embeddings.weight"]
    if qformer.text_embeddings is not None:
        # BERT adds its first token type to every row; it has no place of its own here.
        token_type = state["bert.embeddings.token_type_embeddings.weight"][0]
        own["text_embeddings.word.weight"][: len(words)].copy_(words)
        own["text_embeddings.position.weight"].copy_(state["bert.embeddings.position_embeddings.weight"] + token_type)
    if qformer.language_head is not None:
        own["language_head.bias"][: len(words)].copy_(state["cls.predictions.bias"])


def build_stage1(recipe: Recipe, image_width: int, trained: TrainedVision | None = None) -> Stage1Bridge:
    """A fresh stage-1 bridge that starts from BERT; an image encoder that is trained is a part of it."""
    bridge = Stage1Bridge(_shape(recipe, image_width), recipe.qformer.projection_width, trained)
    load_bert(bridge.qformer, recipe.qformer)
    return bridge


def build_stage2(
    recipe: Recipe,
    image_width: int,
    language: LanguageTower,
    trained: TrainedVision | None = None,
    lora: nn.Module | None = None,
) -> Stage2Bridge:
    """A fresh stage-2 bridge that starts from BERT (and, once loaded, from stage 1); with an encoder as above, and with
    the matrices that `add_lora` has put into the language model."""
    asks = recipe.qformer.question != "none"
    bridge = Stage2Bridge(_shape(recipe, image_width), language.width, trained, asks, lora)
    load_bert(bridge.qformer, recipe.qformer)
    return bridge


def build_bridge(recipe: Recipe, device: str = "cpu", image_width: int | None = None, model: Any = None) -> Bridge:
    """The recipe's bridge, of the right sizes, for weights to be loaded into: no tower's weights are needed.

    `image_width` is the frozen encoder's and `model` the language model, where they are there already: to build them
    takes seconds. LoRA's matrices are then in that model, too.
    """
    vision = None
    if recipe.vision.trained:
        vision = TrainedVision(load_encoder(recipe.vision, device, pretrained=False), recipe.vision)
        image_width = vision.width
    shape = _shape(recipe, image_width or vision_width(recipe.vision))
    if recipe.language is None:
        return Stage1Bridge(shape, recipe.qformer.projection_width, vision)
    model = language_on_meta(recipe.language) if model is None else model
    width = model.get_input_embeddings().embedding_dim
    return Stage2Bridge(shape, width, vision, recipe.qformer.question != "none", add_lora(model, recipe, device))


def log_frozen_and_trainable(frozen: dict[str, nn.Module], trainable: nn.Module) -> None:
    """Freeze the towers, and log how many parameters are frozen and how many are trained. LoRA's are the bridge's."""
    trained = {id(parameter) for parameter in trainable.parameters()}
    for name, module in frozen.items():
        own = [parameter for parameter in module.eval().parameters() if id(parameter) not in trained]
        for parameter in own:
            parameter.requires_grad_(False)
        log.info("%s: %.1fM parameters, frozen", name, sum(p.numel() for p in own) / 1e6)
    log.info("bridge: %.1fM parameters, trained", sum(p.numel() for p in trainable.parameters()) / 1e6)
