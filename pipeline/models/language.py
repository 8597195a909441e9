"""The frozen language model behind one protocol: causal and seq2seq LMs of transformers, read through soft prompts.

Shapes: B batch, Q soft prompts, L tokens of a text, H width of the language model, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from pipeline.config import Language
from pipeline.models.attention_masks import hiding_padding
from pipeline.models.beam_cache import copied_for_beams, has_plain_cache
from pipeline.models.interleaved import causal_loss_sum, embedded
from pipeline.models.loading import load_of_transformers, not_loaded, refuse_missing
from pipeline.models.marked_text import PicturesOf, check_length, with_pictures
from pipeline.models.one_kernel import fuse_operations
from pipeline.models.quantised import check_sizes, number_format, quantising
from pipeline.models.recomputing import checkpoint_layers
from pipeline.models.token_losses import IGNORED, padded_loss_sum
from pipeline.tokens import Given, Interleaved, Tokens, close_up

TAKES_4D_MASKS = ("t5", "mt5")  # encoder-decoders that add a mask of four dimensions as it is


@dataclass(frozen=True)
class Decoding:
    """How text is generated. Lengths count new tokens."""

    num_beams: int = 5
    max_new_tokens: int = 30
    min_new_tokens: int = 1
    length_penalty: float = 1.0
    choice: Any = None  # a logits processor that draws each token, for one beam
    in_step: bool = False  # ranks that share the model: each reads as many tokens as the slowest


class LanguageTower(Protocol):
    """What stage 2 needs of a language model. It is never trained."""

    kind: Literal["causal", "seq2seq"]
    model: Any
    tokenizer: Any
    width: int

    def loss_sum(self, prompts_BQH: Tensor, context: Given, target: Tokens, weights_B: Tensor | None = None) -> Tensor:
        """Cross-entropy of the target after prompts and context, summed over its tokens, fp32. Gradient to prompts.

        `weights_B` are factors on the sums of the rows. Instead of contexts there may be sequences of several pairs.
        """

    def generate(
        self, prompts_BQH: Tensor | None, texts: Sequence[str], decoding: Decoding, pictures: PicturesOf | None = None
    ) -> list[str]:
        """Continue each text after its soft prompts (None: after the text alone), or as `with_pictures` places them."""


class _Tower:
    """What causal and seq2seq towers share: the frozen model, its tokenizer, and the inputs from prompts and text."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.embed_tokens = model.get_input_embeddings()
        self.width: int = self.embed_tokens.embedding_dim
        self.cache_can_be_copied = has_plain_cache(model)

    def _inputs(self, prompts_BQH: Tensor | None, context: Tokens) -> tuple[Tensor, Tensor]:
        """Soft prompts then text: embeddings [B, Q+L, H] and attention mask [B, Q+L]."""
        embeddings = self.embed_tokens(context.ids)
        if prompts_BQH is None:
            return embeddings, context.is_token.long()
        mask = torch.cat([context.is_token.new_ones(prompts_BQH.shape[:2]), context.is_token], dim=1)
        return torch.cat([prompts_BQH.to(embeddings.dtype), embeddings], dim=1), mask.long()

    def _read(
        self, prompts_BQH: Tensor | None, texts: Sequence[str], pictures: PicturesOf | None, how: Decoding, side: str
    ) -> tuple[Tensor, Tensor]:
        """What `generate` continues: embeddings [B, M, H] and attention mask [B, M], padded on the side."""
        if pictures is None or prompts_BQH is None:
            embeddings, mask = self._inputs(prompts_BQH, self._tokenise(texts, side))
        else:
            embeddings, mask = with_pictures(self.embed_tokens, self.tokenizer, prompts_BQH, texts, pictures, side)
        check_length(self.model.config, mask, texts, how.max_new_tokens)
        return embeddings, mask

    def _tokenise(self, texts: Sequence[str], padding_side: str) -> Tokens:
        encoded = self.tokenizer(list(texts), padding=True, padding_side=padding_side, return_tensors="pt")
        device = self.embed_tokens.weight.device
        return Tokens(encoded.input_ids.to(device), encoded.attention_mask.bool().to(device))

    @torch.no_grad()
    def _generate(self, inputs: tuple[Tensor, Tensor], decoding: Decoding, **special: Any) -> list[str]:
        ids = self.model.generate(
            inputs_embeds=inputs[0],
            attention_mask=inputs[1],
            do_sample=False,
            num_beams=decoding.num_beams,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens,
            length_penalty=decoding.length_penalty,
            pad_token_id=self.tokenizer.pad_token_id,
            synced_gpus=decoding.in_step,
            logits_processor=[decoding.choice] if decoding.choice else None,
            **special,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class CausalTower(_Tower):
    """A decoder-only LM (OPT in the paper): [soft prompts][context][target]; every token of the target is scored.

    In pre-training there is no context: then BOS is a part of the target, and scored, too.
    """

    kind: Literal["causal", "seq2seq"] = "causal"

    def __init__(self, model: Any, tokenizer: Any, end_text: str) -> None:
        super().__init__(model, tokenizer)
        ids = tokenizer(end_text, add_special_tokens=False).input_ids
        if not ids or ids[-1] == tokenizer.unk_token_id:
            raise ValueError(f"language.end_text {end_text!r}: the tokenizer has no token for it; set another text")
        self.end_token_id: int = ids[-1]

    def loss_sum(self, prompts_BQH: Tensor, context: Given, target: Tokens, weights_B: Tensor | None = None) -> Tensor:
        if isinstance(context, Interleaved):
            embeddings = embedded(self.embed_tokens, prompts_BQH, context)
            return causal_loss_sum(self.model, embeddings, context, target, weights_B)
        text, scored = close_up(context, target)
        embeddings, _ = self._inputs(prompts_BQH, text)
        length = scored.ids.shape[1]
        # Padding comes last, where causal attention hides it: the model needs no mask to find it.
        # The language head runs only on the positions that predict the target: its logits are the largest tensor.
        output = self.model(inputs_embeds=embeddings, attention_mask=None, logits_to_keep=length + 1, use_cache=False)
        logits_BLV = output.logits
        return padded_loss_sum(logits_BLV[:, -length - 1 : -1], scored, weights_B)

    def generate(
        self, prompts_BQH: Tensor | None, texts: Sequence[str], decoding: Decoding, pictures: PicturesOf | None = None
    ) -> list[str]:
        inputs = self._read(prompts_BQH, texts, pictures, decoding, "left")
        already_read = self._read_for_beams(*inputs, decoding.num_beams)
        return self._generate(inputs, decoding, eos_token_id=self.end_token_id, **already_read)

    @torch.no_grad()
    def _read_for_beams(self, embeddings_BLH: Tensor, mask_BL: Tensor, num_beams: int) -> dict[str, Any]:
        """Keys and values of all positions but the last, computed once and copied for each beam.

        generate() alone would copy the prompt and read it once a beam; the answers are the same. It is left to
        do so with other caches than whole keys and values, as those of sliding windows or recurrent states.
        """
        if num_beams == 1 or not self.cache_can_be_copied or embeddings_BLH.shape[1] == 1:
            return {}
        read = self.model.generate(
            inputs_embeds=embeddings_BLH[:, :-1],
            attention_mask=mask_BL[:, :-1],
            do_sample=False,
            num_beams=1,
            max_new_tokens=1,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
        )
        return copied_for_beams(read, num_beams)


class Seq2SeqTower(_Tower):
    """An encoder-decoder LM (FlanT5 in the paper): [soft prompts][context] into the encoder, the target decoded."""

    kind: Literal["causal", "seq2seq"] = "seq2seq"

    def loss_sum(self, prompts_BQH: Tensor, context: Given, target: Tokens, weights_B: Tensor | None = None) -> Tensor:
        if isinstance(context, Interleaved):
            embeddings, context = embedded(self.embed_tokens, prompts_BQH, context), context.text
            mask = context.is_token.long()
        else:
            embeddings, mask = self._inputs(prompts_BQH, context)
        own_mask = self.model.config.model_type in TAKES_4D_MASKS
        seen = hiding_padding(mask, context, embeddings.dtype) if own_mask else mask
        labels = target.ids.masked_fill(~target.is_token, IGNORED)
        decoder_ids = self._decoder_ids(labels)
        output = self.model(
            inputs_embeds=embeddings, attention_mask=seen, decoder_input_ids=decoder_ids, use_cache=False
        )
        return padded_loss_sum(output.logits, target, weights_B)

    def _decoder_ids(self, labels_BL: Tensor) -> Tensor:
        """The labels shifted right, as the model itself does it: most put a start token first, mBART the language."""
        prepare = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if prepare:
            return cast(Tensor, prepare(labels_BL))
        start, pad = self.model.config.decoder_start_token_id, self.tokenizer.pad_token_id
        shifted_BL = torch.cat([torch.full_like(labels_BL[:, :1], start), labels_BL[:, :-1]], dim=1)
        return shifted_BL.masked_fill(shifted_BL == IGNORED, pad)

    def generate(
        self, prompts_BQH: Tensor | None, texts: Sequence[str], decoding: Decoding, pictures: PicturesOf | None = None
    ) -> list[str]:
        inputs = self._read(prompts_BQH, texts, pictures, decoding, "right")
        return self._generate(inputs, decoding, **self._read_for_beams(*inputs, decoding.num_beams))

    @torch.no_grad()
    def _read_for_beams(self, embeddings_BLH: Tensor, mask_BL: Tensor, num_beams: int) -> dict[str, Any]:
        """The encoder's output, and its keys and values in each decoder layer, computed once and copied for the beams.

        generate() alone would copy the output and project it once a beam.
        """
        encoded = self.model.get_encoder()(inputs_embeds=embeddings_BLH, attention_mask=mask_BL)
        if num_beams == 1 or not self.cache_can_be_copied:
            return {"encoder_outputs": encoded}
        inputs = {"attention_mask": mask_BL, "decoder_input_ids": torch.zeros_like(mask_BL[:, :1])}  # any token
        read = self.model(encoder_outputs=encoded, use_cache=True, **inputs)
        copied = copied_for_beams(read, num_beams)
        if copied:
            copied["past_key_values"].crop(-1)  # remove the token that was only there to fill the cache
        return {"encoder_outputs": encoded, **copied}


def language_config(settings: Language) -> Any:
    """The model's configuration with the recipe's replacements, without its weights.

    Raises ValueError in one line when it is missing, or has no such field.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(settings.name, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of errors
        raise _not_loaded(settings, error) from error
    for field, value in settings.config.items():
        if not hasattr(config, field):
            raise ValueError(f"language.config.{field}: {config.model_type!r} models have no such field; remove it")
        try:
            setattr(config, field, value)
        except Exception as error:  # strict configurations raise kinds of their own
            raise ValueError(
                f"language.config.{field} {value!r}: is not a valid value ({' '.join(str(error).split())})"
            ) from error
    if "t5" in config.model_type and settings.precision == "fp16":
        raise ValueError(
            f"language.precision 'fp16': the activations of {settings.name!r}, a T5, overflow to inf and NaN; use bf16"
        )
    return config


def language_on_meta(settings: Language) -> Any:
    """The model's shapes without its weights. Raises ValueError in one line when its configuration is missing."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = language_config(settings)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return auto_class.from_config(
                config, dtype=number_format(settings.precision, config), trust_remote_code=False
            )
    except Exception as error:  # as above; also for an activation that does not exist
        raise _not_loaded(settings, error) from error


def build_language(settings: Language, device: str) -> LanguageTower:
    """Load model and tokenizer, frozen, each tensor straight to the device; on `meta` there are shapes alone. Raises
    ValueError in one line when something is missing or does not fit."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    config = language_config(settings)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    options = {"config": config, "device_map": {"": device}, **quantising(settings.precision, config)}
    try:
        if device == "meta":
            model = language_on_meta(settings)
        else:
            model, missing = load_of_transformers(auto_class, settings.name, **options)
            refuse_missing(missing)
        tokenizer = AutoTokenizer.from_pretrained(settings.name, trust_remote_code=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds of errors
        raise _not_loaded(settings, error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # any token will do: padding is masked and not scored
    model.requires_grad_(False).eval()
    fuse_operations(model)
    check_sizes(model, settings.name)
    if settings.activation_checkpointing:
        checkpoint_layers(model)
    if config.is_encoder_decoder:
        return Seq2SeqTower(model, tokenizer)
    return CausalTower(model, tokenizer, settings.end_text)


def _not_loaded(settings: Language, error: Exception) -> ValueError:
    return not_loaded(f"language.name {settings.name!r} in {settings.precision}", error)
