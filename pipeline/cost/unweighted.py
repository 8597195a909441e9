"""A recipe's task at its real shapes without weights: its tensors have size and dtype, and no content."""

import math
import re
from dataclasses import fields, is_dataclass, replace
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.data.batch import Batch
from pipeline.data.pairs import Layout, interleave
from pipeline.models.build import build_bridge
from pipeline.models.encoders import load_encoder
from pipeline.models.interleaved import check_positions
from pipeline.models.language import (
    CausalTower,
    LanguageTower,
    Seq2SeqTower,
    language_config,
    language_on_meta,
)
from pipeline.models.one_kernel import fuse_operations
from pipeline.models.recomputing import checkpoint_layers
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower
from pipeline.tokens import Tokens, pad_tokens
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task

LENGTH_DEVIATION = 0.27  # of a caption's length, in its logarithm: of 1,680 captions of 13 tokens the longest has 32
MIN_TOKENS = 3  # [CLS], one word, [SEP]
QUESTION_SHARE = 2 / 3  # of a caption's tokens, those of a question: 8 of 12
ANSWER_TOKENS, LONGEST_ANSWER = 3, 8  # with the end


class _NoTokenizer:
    """What a language tower needs of its tokenizer for a loss; so a plan needs no vocabulary file."""

    pad_token_id, unk_token_id = 0, None

    def __call__(self, _text: str, **_options: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[1])


def unweighted_task(recipe: Recipe, mode: Any) -> Stage1Task | Stage2Task:
    """The recipe's task with fake tensors of `mode` in the place of weights.

    Raises ValueError in one line when a tower's configuration cannot be loaded.
    """
    model = language_on_meta(recipe.language).requires_grad_(False) if recipe.language else None
    with torch.device("meta"):
        frozen = None
        if not recipe.vision.trained:
            frozen = VisionTower(load_encoder(recipe.vision, "meta", pretrained=False), recipe.vision.precision)
        bridge = build_bridge(recipe, "meta", frozen.width if frozen else None, model)
    for module in (bridge, *([frozen] if frozen else [])):
        _without_weights(module, mode)
    if isinstance(bridge, Stage1Bridge):
        return Stage1Task(
            bridge, frozen, recipe.objectives, bridge.qformer.shape.vocabulary - 1, recipe.qformer.precision
        )
    assert isinstance(bridge, Stage2Bridge)
    language = _language(recipe, mode, model)
    check_positions(language, recipe)
    sharded, asks = recipe.run.layout == "sharded", recipe.data.sample == "question"
    return Stage2Task(bridge, frozen, language, recipe.qformer.precision, sharded, asks)


def _language(recipe: Recipe, mode: Any, model: Any) -> LanguageTower:
    assert recipe.language is not None
    model.eval()
    _without_weights(model, mode)
    fuse_operations(model)
    if recipe.language.activation_checkpointing:
        checkpoint_layers(model)
    if model.config.is_encoder_decoder:
        return Seq2SeqTower(model, _NoTokenizer())
    return CausalTower(model, _NoTokenizer(), recipe.language.end_text)


def _without_weights(module: nn.Module, mode: Any) -> None:
    """Put fake tensors in the place of parameters and buffers; what was one tensor stays one."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        parameters: dict[str, Any] = part._parameters
        for tensors in (parameters, part._buffers):
            tensors.update({name: fake(tensor) for name, tensor in tensors.items() if tensor is not None})


def caption_batch(recipe: Recipe, micro_size: int, lengths: tuple[int, int]) -> Batch:
    """A micro batch of captions that all have the same tokens of context and of target.

    Of questions too; but they are taken as of unequal length, which costs a causal model more.
    """

    def tokens(length: int, equal: bool = True) -> Tokens:
        ids = torch.ones((micro_size, length), dtype=torch.int64)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), ids.numel() if equal else None)

    asks, context, target = recipe.data.sample == "question", *lengths
    question = tokens(context) if recipe.qformer.question != "none" else None

    size_px = recipe.vision.image_size_px
    pixels = torch.zeros((micro_size, 3, size_px, size_px), dtype=torch.uint8)
    texts = tokens(context, equal=not asks), tokens(target)
    return _in_sequences(Batch(pixels, torch.arange(micro_size), *texts, 0, question=question), recipe)


def _in_sequences(batch: Batch, recipe: Recipe) -> Batch:
    """The same with sequences of several pairs, where the recipe has them; all samples are of one source."""
    pairs = recipe.data.pairs_per_sequence
    if pairs == 1:
        return batch
    layout = Layout(pairs, recipe.qformer.num_query_tokens, 1, _is_seq2seq(recipe))
    return interleave(batch, [""] * len(batch.image_ids_B), layout)


def typical_batch(recipe: Recipe, micro_size: int, caption_tokens: int) -> Batch:
    """A micro batch of captions whose lengths vary as COCO's do, around a mean of `caption_tokens`."""
    rows = [mean_lengths(recipe, length) for length in typical_lengths(micro_size, caption_tokens)]
    context, target = (pad_tokens([[1] * length for length in lengths], 0) for lengths in zip(*rows, strict=True))
    question = context if recipe.qformer.question != "none" else None
    empty = caption_batch(recipe, micro_size, (0, 0))
    return _in_sequences(replace(empty, context=context, target=target, question=question), recipe)


def typical_lengths(number: int, mean: int) -> list[int]:
    """Evenly spaced quantiles of a log-normal law, from short to long."""
    shift = math.log(mean) - LENGTH_DEVIATION**2 / 2
    law = NormalDist(shift, LENGTH_DEVIATION)
    return [max(MIN_TOKENS, round(math.exp(law.inv_cdf((place + 0.5) / number)))) for place in range(number)]


def faked(value: Any, mode: Any) -> Any:
    """The same batch with fake tensors in the place of its tensors."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: faked(getattr(value, field.name), mode) for field in fields(value)})
    return value


def mean_lengths(recipe: Recipe, caption_tokens: int) -> tuple[int, int]:
    """Tokens of context and of target, for a caption of so many tokens, special ones included.

    A seq2seq model reads the beginning, to a point between the first token and the middle, and both parts get an end.
    """
    most, prompt = recipe.data.max_text_tokens, prompt_tokens(recipe)
    length = min(caption_tokens, most)
    if recipe.data.sample == "question":
        return min(prompt + round(QUESTION_SHARE * caption_tokens), most - ANSWER_TOKENS), ANSWER_TOKENS
    if prompt:
        return prompt, max(1, min(length - 1, most - prompt))
    if not _is_seq2seq(recipe):
        return 0, length
    split = round((1 + length // 2) / 2)
    return split + 1, length - split + 1


def longest_lengths(recipe: Recipe) -> tuple[int, int]:
    """The most that a micro batch can be padded to: its rows are split at points of their own."""
    length, prompt, seq2seq = recipe.data.max_text_tokens, prompt_tokens(recipe), _is_seq2seq(recipe)
    if recipe.data.sample == "question":
        return (length if seq2seq else max(prompt, length - LONGEST_ANSWER)), LONGEST_ANSWER
    if prompt:
        return prompt, (length if seq2seq else length - prompt)
    return (length // 2 + 1, length) if seq2seq else (0, length)


def prompt_tokens(recipe: Recipe) -> int:
    """Tokens of `language.prompt` without its question, and BOS or EOS: a token for each word and mark. 0 for none."""
    prompt = recipe.language.prompt.replace("{}", "") if recipe.language else ""
    return len(re.findall(r"\w+|[^\w\s]", prompt)) + 1 if prompt else 0


def _is_seq2seq(recipe: Recipe) -> bool:
    return recipe.language is not None and bool(language_config(recipe.language).is_encoder_decoder)
