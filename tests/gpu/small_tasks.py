"""Small tasks of both stages, equal on every device, with the real widths of a head: 88 (ViT-g), 64 (Q-Former)."""

import copy
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pipeline.config import Objectives
from pipeline.data.batch import Batch
from pipeline.models.encoders import CLIP_MEAN, CLIP_STD, Encoder, TimmEncoder
from pipeline.models.language import CausalTower, Seq2SeqTower
from pipeline.models.one_kernel import fuse_operations
from pipeline.models.precision import DTYPES
from pipeline.models.qformer_layer import QFormerShape
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower
from pipeline.tokens import pad_tokens
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace, vision_of

IMAGE_WIDTH, WIDTH, VOCABULARY, BATCH, LONGEST = 176, 128, 500, 6, 12
SIZE_PX, DECODE, TEMPERATURE = 56, VOCABULARY - 1, 0.5
SHAPE = QFormerShape(
    width=WIDTH, num_layers=4, num_heads=WIDTH // 64, ffn_width=4 * WIDTH, vocabulary=VOCABULARY, max_positions=64,
    layer_norm_eps=1e-12, initializer_range=0.02, image_width=IMAGE_WIDTH, num_query_tokens=8,
    cross_attention_every=2, dropout=0.0,
)  # fmt: skip
NEGATIVES = (torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([2, 3, 4, 5, 0, 1]))
Task = Stage1Task | Stage2Task


def vision(precision: str) -> VisionTower:
    """EVA's architecture with two heads of 88, three blocks."""
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": SIZE_PX, "patch_size": 14, "embed_dim": IMAGE_WIDTH, "depth": 3, "num_heads": 2}
    model = timm.create_model("eva_giant_patch14_clip_224", num_classes=0, mlp_ratio=4.0, **sizes)
    return VisionTower(Encoder(TimmEncoder(model), CLIP_MEAN, CLIP_STD), precision)


def _spread(bridge: Any) -> Any:
    """Larger weights than training starts with: attention would be nearly uniform, and hide faults.

    The temperature is high: a low one magnifies rounding, most where two queries fit a text as well.
    """
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.06)
            if name == "temperature":
                parameter.fill_(TEMPERATURE)
    return bridge


def stage1(vision_precision: str, precision: str) -> Stage1Task:
    torch.manual_seed(1)
    bridge = _spread(Stage1Bridge(SHAPE, 64))
    return Stage1Task(bridge, vision(vision_precision), Objectives(), DECODE, precision)


def stage2(language: str, language_precision: str, vision_precision: str, precision: str) -> Stage2Task:
    """`language`: t5 or opt, with weights rounded to bf16 or fp16 whatever they are held in."""
    from tests.support.tiny_towers import word_tokenizer

    model = _t5() if language == "t5" else _opt()
    rounding = torch.bfloat16 if language == "t5" else torch.float16
    model.to(rounding).to(DTYPES[language_precision]).requires_grad_(False).eval()
    fuse_operations(model)
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>")
    tower = Seq2SeqTower(model, tokenizer) if language == "t5" else CausalTower(model, tokenizer, "red")
    torch.manual_seed(1)
    bridge = _spread(Stage2Bridge(SHAPE, tower.width))
    return Stage2Task(bridge, vision(vision_precision), tower, precision)


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(2)
    config = T5Config(
        vocab_size=VOCABULARY, d_model=128, d_kv=64, d_ff=256, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def _opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(2)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=128, word_embed_proj_dim=128, ffn_dim=256, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, dropout=0.0, pad_token_id=0,
    )  # fmt: skip
    return OPTForCausalLM(config)


def small_batch(stage: int, seed: int = 0) -> Batch:
    """Pictures of 16 colours each, captions of 4 to 12 tokens; stage 2 has their first ones as context."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [4, 7, 12, 9, 5, 11]
    words = [torch.randint(5, DECODE, (length,), generator=generator).tolist() for length in lengths]
    contexts: list[list[int]] = [[] for _ in words]
    if stage == 2:
        contexts, words = [each[:2] for each in words], [each[2:] for each in words]
    colours = torch.randint(0, 256, (BATCH, 3, 4, 4), generator=generator, dtype=torch.uint8)
    pixels = colours.repeat_interleave(SIZE_PX // 4, 2).repeat_interleave(SIZE_PX // 4, 3)
    return Batch(pixels, torch.arange(BATCH) + 100 * seed, pad_tokens(contexts, 0), pad_tokens(words, 0), 0)


def losses_and_gradients(
    task: Task, batch: Batch, device: str, scale: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Of a copy of the task on the device; see `losses_in_place`."""
    task = copy.deepcopy(task).to(device)
    vision_of(task).to(device)
    if isinstance(task, Stage2Task):
        task.towers.language.model.to(device)
    return losses_in_place(task, batch, device, scale)


def losses_in_place(task: Task, batch: Batch, device: str, scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    """Losses, and the gradient of each of the bridge's parameters. The negatives are given: GPUs draw other numbers."""
    batch = batch.to(device)
    task.loss_scale.value = scale
    texts, images = (rows.to(device) for rows in NEGATIVES)
    tokens = task.num_scored_tokens(batch)
    place = StepPlace(0, 1 / tokens, batch.target.ids.shape[1], 0)
    with mock.patch.object(Stage1Task, "_draw_negatives", lambda *_: (texts, images)):
        losses = task.eval()(batch, place)
    (losses["loss"] * scale).backward()
    named = [value for name, value in losses.items() if name.endswith("loss")]
    return named, [p.grad if p.grad is not None else torch.zeros_like(p) for p in task.bridge.parameters()]
