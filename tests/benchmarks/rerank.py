"""ITM of one picture with its candidates: keys and values projected once, and once a pair as a plain batch has it.

    python -m tests.benchmarks.rerank [--image-sizes 364 224] [--candidates 128] [--layers 12] [--batch 32]

BERT-base's shape over ViT-g's tokens (width 1408; 677 at 364 px, at which the paper's retrieval is fine-tuned and
evaluated, 257 at 224 px), random weights, fp32, texts of 8 to 20 tokens. Three ways, by turns, in the process's own
time: ours; batches of pairs, each with its own copy of the picture's tokens; and the same with every text padded to 35
tokens, as LAVIS has it. Beside each ratio stands that of the floating point operations, which is its limit. The logits
must agree.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.qformer_layer import QFormerShape
from pipeline.models.stage1 import Stage1Bridge
from pipeline.objectives.matching import MATCH
from pipeline.tokens import Tokens

IMAGE_WIDTH, PATCH_PX = 1408, 14
LAVIS_TEXT_TOKENS = 35
"""`max_txt_len` of LAVIS' retrieval recipes, to which its `compute_itm` is given every text padded."""


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
    weights = bridge.weights()
    image = bridge.qformer.project_image(frozen_PI[None], weights)
    starts = range(0, len(ids_KL), batch)
    texts = [Tokens(ids_KL[at : at + batch], is_token_KL[at : at + batch]) for at in starts]
    return torch.cat([bridge.match([(image, len(part.ids))], part, weights)[:, MATCH] for part in texts])


@torch.no_grad()
def pair_by_pair(bridge: Stage1Bridge, frozen_PI: Tensor, ids_KL: Tensor, is_token_KL: Tensor, batch: int) -> Tensor:
    """Each pair with a copy of the picture, which is projected for it."""
    parts, weights = [], bridge.weights()
    for at in range(0, len(ids_KL), batch):
        ids, is_token = ids_KL[at : at + batch], is_token_KL[at : at + batch]
        copies_KPI = frozen_PI[None].repeat(len(ids), 1, 1)
        images = [(bridge.qformer.project_image(copies_KPI, weights), len(ids))]
        parts.append(bridge.match(images, Tokens(ids, is_token), weights)[:, MATCH])
    return torch.cat(parts)


def padded(rows_KL: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows_KL, (0, length - rows_KL.shape[1]))


def operations_of(way: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Floating point operations of matrix products in one call, and what it returned."""
    with FlopCounterMode(display=False) as counter:
        result = way()
    return counter.get_total_flops(), result


def compare(bridge: Stage1Bridge, image_size_px: int, candidates: int, batch: int, rounds: int) -> None:
    """Print the ways' times and operations beside ours, for a picture of that size."""
    ids_KL, is_token_KL = texts_of(candidates)
    long_KL, is_long_token_KL = (padded(rows, LAVIS_TEXT_TOKENS) for rows in (ids_KL, is_token_KL))
    frozen_PI = torch.randn((image_size_px // PATCH_PX) ** 2 + 1, IMAGE_WIDTH)
    ways: dict[str, Callable[[], Tensor]] = {
        "keys and values shared": lambda: shared(bridge, frozen_PI, ids_KL, is_token_KL, batch),
        "pair by pair": lambda: pair_by_pair(bridge, frozen_PI, ids_KL, is_token_KL, batch),
        "pair by pair, padded to 35": lambda: pair_by_pair(bridge, frozen_PI, long_KL, is_long_token_KL, batch),
    }
    operations, logits = {}, {}
    for name, way in ways.items():  # which warms up too
        operations[name], logits[name] = operations_of(way)
    gap = max(float((logits[name] - logits["keys and values shared"]).abs().max()) for name in ways)
    assert gap < 1e-3, gap
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name] = min(times[name], time.process_time() - start)
    print(f"{image_size_px} px, {len(frozen_PI)} tokens, {candidates} candidates, largest gap of a logit {gap:.1e}")
    for name in ways:
        ratio, limit = (of[name] / of["keys and values shared"] for of in (times, operations))
        print(f"{name:28} {times[name]:6.2f} s, {ratio:.2f} times ours; operations {limit:.2f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[364, 224], metavar="PX")
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32, help="pairs of a call, of all ways")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of so many counts")
    options = parser.parse_args()
    bridge = bridge_of(options.layers)
    for image_size_px in options.image_sizes:
        compare(bridge, image_size_px, options.candidates, options.batch, options.rounds)


if __name__ == "__main__":
    main()
