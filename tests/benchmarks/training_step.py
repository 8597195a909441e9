"""A training step of the bridge beside a plain one that pads and projects each time, and transformers' BLIP-2.

    python -m tests.benchmarks.training_step [--stages 1 2] [--layers 2] [--batch 16] [--rounds 5]

BERT-base's width over ViT-g's tokens (257 x 1408), which are given; fp32, one thread, no dropout; captions of COCO's
lengths, 13 tokens on average. A step is forward, backward and AdamW. The ways take turns; times are the process's own,
medians. The first losses of all ways must agree. Beside each ratio stands that of the floating point operations.
With --layers 12 it is the whole Q-Former.
"""

import argparse
import math
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Objectives, Optimizer
from pipeline.cost.unweighted import LENGTH_DEVIATION
from pipeline.data.batch import Batch, collate_for_qformer
from pipeline.data.stream import Sample
from pipeline.models.language import CausalTower
from pipeline.models.precision import choose_attention_kernel
from pipeline.models.qformer_layer import QFormerShape
from pipeline.models.stage1 import Stage1Bridge
from pipeline.models.stage2 import Stage2Bridge
from pipeline.training.agreement import agree
from pipeline.training.optimizer import build_optimizer
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from pipeline.weights.huggingface_config import qformer_config
from pipeline.weights.names import huggingface_name
from tests.benchmarks.plain_bridge import PADDED_TOKENS, PlainBridge, stage1_loss
from tests.support.tiny_towers import word_tokenizer

IMAGE_TOKENS, IMAGE_WIDTH, VOCABULARY = 257, 1408, 30523
MEAN_TOKENS, WORDS, SEED = 13, 1000, 0
LANGUAGE = {"vocab_size": WORDS, "hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024}
IGNORED = -100
Way = Callable[[], Tensor]


def shape_of(layers: int) -> QFormerShape:
    """BERT-base with so many layers."""
    return QFormerShape(
        width=768,
        num_layers=layers,
        num_heads=12,
        ffn_width=3072,
        vocabulary=VOCABULARY,
        max_positions=512,
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        image_width=IMAGE_WIDTH,
        num_query_tokens=32,
        cross_attention_every=2,
        dropout=0.0,
    )


class _Ids:
    """A tokenizer that is given ids: text i is row i."""

    pad_token_id = 0

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __call__(self, texts: list[str], **_options: Any) -> Any:
        return argparse.Namespace(input_ids=[self.rows[int(text)] for text in texts])


def batch_of(size: int) -> Batch:
    """Image tokens in the place of pixels, and captions of COCO's lengths."""
    torch.manual_seed(SEED)
    rng, centre = random.Random(SEED), math.log(MEAN_TOKENS) - LENGTH_DEVIATION**2 / 2
    lengths = [min(PADDED_TOKENS, max(4, round(rng.lognormvariate(centre, LENGTH_DEVIATION)))) for _ in range(size)]
    rows = [[rng.randrange(5, WORDS) for _ in range(length)] for length in lengths]
    samples = [Sample(f"{i}", torch.randn(IMAGE_TOKENS, IMAGE_WIDTH), f"{i}", rng, 0) for i in range(size)]
    return collate_for_qformer(_Ids(rows), PADDED_TOKENS)(samples)


def stepping(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Way:
    """Forward, backward, update; gives the loss."""

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ours(task: Any, batch: Batch) -> Way:
    """The production task's step on one rank."""
    [place], _ = agree(task, [batch], SEED, 0, False)
    return stepping(lambda: task(batch, place)["loss"], build_optimizer(task.bridge, Optimizer()))


def plain_parts(bridge: Stage1Bridge | Stage2Bridge) -> tuple[PlainBridge, torch.optim.Optimizer]:
    """A plain bridge with weights of its own, equal to the bridge's."""
    weights = {name: tensor.clone().requires_grad_() for name, tensor in bridge.state_dict().items()}
    return PlainBridge(weights, bridge.qformer.shape), torch.optim.AdamW(
        weights.values(), lr=Optimizer().peak_learning_rate
    )


def stage_1(layers: int, batch: Batch) -> dict[str, Way]:
    bridge, settings = Stage1Bridge(shape_of(layers), 256), Objectives()
    task = Stage1Task(bridge, nn.Identity(), settings, VOCABULARY - 1, "fp32")  # type: ignore[arg-type]
    plain, optimizer = plain_parts(bridge)
    [place], _ = agree(cast(Any, task), [batch], SEED, 0, False)
    seed, features, text = place.negatives_seed, batch.pixels_B3SS, batch.target
    padded = stepping(lambda: stage1_loss(plain, features, text, VOCABULARY - 1, settings, seed), optimizer)
    return {"ours": ours(task, batch), "plain, padded to 32": padded}


def stage_2(layers: int, batch: Batch) -> dict[str, Way]:
    from transformers import OPTConfig, OPTForCausalLM

    shape, config = shape_of(layers), OPTConfig(**LANGUAGE, num_hidden_layers=2, num_attention_heads=4, dropout=0.0)
    language = OPTForCausalLM(config).requires_grad_(False).eval()
    bridge = Stage2Bridge(shape, config.hidden_size)
    tower = CausalTower(language, word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>"), "red")
    task = Stage2Task(bridge, nn.Identity(), tower, "fp32")  # type: ignore[arg-type]
    plain, optimizer = plain_parts(bridge)
    features, text = batch.pixels_B3SS, batch.target.padded_to(PADDED_TOKENS)
    labels = text.ids.masked_fill(~text.is_token, IGNORED)

    def plain_loss() -> Tensor:
        prompts = plain.soft_prompts(features)
        embedded = torch.cat([prompts, language.get_input_embeddings()(text.ids)], dim=1)
        mask = torch.cat([text.is_token.new_ones(prompts.shape[:2]), text.is_token], dim=1)
        scored = torch.cat([labels.new_full(prompts.shape[:2], IGNORED), labels], dim=1)
        return language(inputs_embeds=embedded, attention_mask=mask.long(), labels=scored, use_cache=False).loss

    model = transformers_blip2(bridge, language)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = torch.optim.AdamW(trained, lr=Optimizer().peak_learning_rate)
    longest = batch.target  # as transformers' own collators pad
    image_ids = torch.full((len(features), shape.num_query_tokens), model.config.image_token_index)
    ids, mask = torch.cat([image_ids, longest.ids], dim=1), torch.cat([image_ids > 0, longest.is_token], dim=1).long()
    scored = torch.cat(
        [torch.full_like(image_ids, IGNORED), longest.ids.masked_fill(~longest.is_token, IGNORED)], dim=1
    )

    def transformers_loss() -> Tensor:
        return model(pixel_values=features, input_ids=ids, attention_mask=mask, labels=scored).loss

    return {
        "ours": ours(task, batch),
        "plain, padded to 32": stepping(plain_loss, optimizer),
        "transformers' Blip2ForConditionalGeneration": stepping(transformers_loss, theirs),
    }


class GivenFeatures(nn.Module):
    """In the place of transformers' vision model: the features that are given, and its trained last norm."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.post_layernorm = nn.LayerNorm(IMAGE_WIDTH, eps=1e-5)

    def forward(self, pixel_values: Tensor, **_options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(last_hidden_state=self.post_layernorm(pixel_values))


def transformers_blip2(bridge: Stage2Bridge, language: Any) -> Any:
    """transformers' model with the bridge's weights and the same language model, in training mode."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    shape = bridge.qformer.shape
    config = Blip2Config(
        vision_config={"hidden_size": IMAGE_WIDTH, "num_hidden_layers": 1, "num_attention_heads": 16},
        qformer_config=qformer_config(shape, with_text=False).to_dict(),
        text_config=language.config.to_dict(),
        num_query_tokens=shape.num_query_tokens,
        image_token_index=1,
    )
    model: Any = Blip2ForConditionalGeneration(config)
    model.vision_model, model.language_model = GivenFeatures(), language
    state = {huggingface_name(name): tensor for name, tensor in bridge.state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("language_model.") for name in missing), (missing, unexpected)
    model.train()
    language.eval()
    return model


def compare(ways: dict[str, Way], rounds: int, title: str) -> None:
    """Print the median time of each way and its ratio to ours."""
    losses, operations = {}, {}
    for name, way in ways.items():  # which warms up, too
        with FlopCounterMode(display=False) as counter:
            losses[name] = float(way())
        operations[name] = counter.get_total_flops()
    gap = max(abs(loss - losses["ours"]) for loss in losses.values())
    assert gap < 1e-3, losses
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    print(f"{title}; the losses differ by {gap:.0e}")
    for name, taken in times.items():
        ratio, limit = median(taken) / median(times["ours"]), operations[name] / operations["ours"]
        print(f"  {name:44} {median(taken):6.2f} s a step, {ratio:.2f} times ours; operations {limit:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--layers", type=int, default=2, help="of the Q-Former; BERT-base has 12")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    choose_attention_kernel("cpu")
    batch = batch_of(options.batch)
    for stage in options.stages:
        torch.manual_seed(SEED)
        ways = (stage_1 if stage == 1 else stage_2)(options.layers, batch)
        title = f"stage {stage}, {options.layers} layers, {options.batch} pairs, captions of "
        title += f"{float(batch.target.is_token.sum()) / options.batch:.1f} tokens, at most {batch.target.ids.shape[1]}"
        compare(ways, options.rounds, title)


if __name__ == "__main__":
    main()
