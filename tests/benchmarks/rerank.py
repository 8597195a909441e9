"""ITM of one picture with its candidates: keys and values projected once, and once a pair as a plain batch has it.

    python -m tests.benchmarks.rerank [--candidates 128] [--layers 12] [--batch 32]

BERT-base's shape over ViT-g's tokens (257 of width 1408), random weights, fp32, texts of 8 to 20 tokens. The plain way
scores batches of pairs, each with its own copy of the picture's tokens, as a public implementation does; both on the
same threads, one after the other. The logits must agree.
"""

import argparse
import time

import torch
from torch import Tensor

from pipeline.models.qformer import QFormerShape
from pipeline.models.stage1 import Stage1Bridge
from pipeline.objectives.matching import MATCH

IMAGE_TOKENS, IMAGE_WIDTH = 257, 1408


def bridge_of(layers: int) -> Stage1Bridge:
    """Stage 1's bridge at full width with so many layers."""
    torch.manual_seed(0)
    shape = QFormerShape(
        width=768,
        num_layers=layers,
        num_heads=12,
        ffn_width=3072,
        vocabulary=30523,
        max_positions=512,
        layer_norm_eps=1e-12,
        initializer_range=0.02,
        image_width=IMAGE_WIDTH,
        num_query_tokens=32,
        cross_attention_every=2,
        dropout=0.1,
    )
    return Stage1Bridge(shape, 256).eval()


def texts_of(candidates: int) -> tuple[Tensor, Tensor]:
    """Ids and which of them are tokens, sorted by length as the rerank sorts them: [K, L] each."""
    lengths = torch.randint(8, 21, (candidates,)).sort().values
    is_token = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return torch.randint(1000, 30000, is_token.shape) * is_token, is_token


@torch.no_grad()
def shared(bridge: Stage1Bridge, frozen_PI: Tensor, ids_KL: Tensor, is_token_KL: Tensor, batch: int) -> Tensor:
    """As RetrievalModel.match_logits: one projection, all candidates."""
    image = bridge.project_image(frozen_PI[None])
    starts = range(0, len(ids_KL), batch)
    parts = [bridge.match(image, ids_KL[at : at + batch], is_token_KL[at : at + batch])[:, MATCH] for at in starts]
    return torch.cat(parts)


@torch.no_grad()
def pair_by_pair(bridge: Stage1Bridge, frozen_PI: Tensor, ids_KL: Tensor, is_token_KL: Tensor, batch: int) -> Tensor:
    """Each pair with a copy of the picture, which is projected for it."""
    parts = []
    for at in range(0, len(ids_KL), batch):
        ids, is_token = ids_KL[at : at + batch], is_token_KL[at : at + batch]
        copies_KPI = frozen_PI[None].repeat(len(ids), 1, 1)
        parts.append(bridge.match(bridge.project_image(copies_KPI), ids, is_token)[:, MATCH])
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32, help="pairs of a call, of both ways")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    bridge, (ids_KL, is_token_KL) = bridge_of(options.layers), texts_of(options.candidates)
    frozen_PI = torch.randn(IMAGE_TOKENS, IMAGE_WIDTH)
    times, logits = {}, {}
    for way in (shared, pair_by_pair):
        for _ in range(options.repeats):
            start = time.perf_counter()
            logits[way.__name__] = way(bridge, frozen_PI, ids_KL, is_token_KL, options.batch)
            times[way.__name__] = min(times.get(way.__name__, 1e9), time.perf_counter() - start)
    gap = float((logits["shared"] - logits["pair_by_pair"]).abs().max())
    assert gap < 1e-3, gap
    print(f"{options.candidates} candidates, {options.layers} layers, largest difference of a logit {gap:.1e}")
    one, other = times["pair_by_pair"], times["shared"]
    print(f"pair by pair {one:.2f} s, keys and values shared {other:.2f} s: {one / other:.1f} times as fast")


if __name__ == "__main__":
    main()
