"""Answers to questions beside one at a time: pictures encoded once a batch, prompts read once for all beams.

    python -m tests.benchmarks.answers [--questions 20] [--questions-a-picture 5]

Random ViT-B/16, BERT-base's Q-Former, and OPT-125M or T5-base, whose floating point operations stand to one another
about as those of ViT-g and OPT-2.7B or FlanT5-XL do; fp32, beams 5, ten new tokens, prompts of 32 soft and 8 to 12
other tokens. Beside it, in the process's own time: a copy of the picture for each question, and transformers'
generate() as it is. Beside the ratio stands that of the floating point operations, which is its limit. The answers must
be equal.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Vision
from pipeline.models.language import CausalTower, Decoding, Seq2SeqTower
from pipeline.models.qformer_layer import QFormerShape
from pipeline.models.stage2 import Stage2Bridge
from pipeline.models.vision import VisionTower, build_vision
from tests.support.tiny_towers import save_timm, word_tokenizer

VISION = "vit_base_patch16_clip_224", {"embed_dim": 768, "depth": 12, "num_heads": 12, "img_size": 224}
DECODING = Decoding(num_beams=5, max_new_tokens=10, min_new_tokens=10, length_penalty=-1.0)


def random_language(kind: str, tokenizer: Any) -> Any:
    """OPT-125M's shape, or T5-base's with FlanT5's gated FFN; large weights, so that pictures and questions matter."""
    from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

    if kind == "OPT":
        model = OPTForCausalLM(OPTConfig(vocab_size=50272))
    else:
        size = {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu"}
        model = T5ForConditionalGeneration(T5Config(vocab_size=32128, decoder_start_token_id=0, **size))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    model.eval().requires_grad_(False)
    return CausalTower(model, tokenizer, end_text="photo") if kind == "OPT" else Seq2SeqTower(model, tokenizer)


def random_bridge(image_width: int, language_width: int) -> Stage2Bridge:
    shape = QFormerShape(
        width=768, num_layers=12, num_heads=12, ffn_width=3072, vocabulary=30523, max_positions=512,
        layer_norm_eps=1e-12, initializer_range=0.02, image_width=image_width, num_query_tokens=32,
        cross_attention_every=2, dropout=0.1,
    )  # fmt: skip
    return Stage2Bridge(shape, language_width).eval()


def measured(work: Callable[[], list[str]], rounds: int) -> tuple[list[str], int, float]:
    """What it answers, its floating point operations, and the fastest of some rounds' seconds."""
    with FlopCounterMode(display=False) as counter:
        answers = work()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return answers, counter.get_total_flops(), min(times)


def compare(
    kind: str,
    vision: VisionTower,
    bridge: Stage2Bridge,
    language: Any,
    pixels: Tensor,
    picture_of: list[int],
    texts: list[str],
    rounds: int,
) -> None:
    """Print both ways' times and operations."""

    @torch.no_grad()
    def shared() -> list[str]:
        """As LanguageModel.generate."""
        soft_prompts = bridge(vision(pixels))[torch.tensor(picture_of)]
        return language.generate(soft_prompts, texts, DECODING)  # type: ignore[no-any-return]

    @torch.no_grad()
    def each_alone() -> list[str]:
        soft_prompts = bridge(vision(pixels[picture_of]))
        side = "left" if kind == "OPT" else "right"
        inputs = language._inputs(soft_prompts, language._tokenise(texts, padding_side=side))
        more = {"eos_token_id": language.end_token_id} if kind == "OPT" else {}
        return language._generate(inputs, DECODING, **more)  # type: ignore[no-any-return]

    ours, theirs = (measured(work, rounds) for work in (shared, each_alone))
    assert ours[0] == theirs[0] and len(set(ours[0])) > 1
    ratio, limit = theirs[2] / ours[2], theirs[1] / ours[1]
    print(
        f"{kind}, {len(texts)} questions on {len(pixels)} pictures {ours[2]:.2f} s; picture a question, prompt a beam"
    )
    print(f"{theirs[2]:.2f} s: {ratio:.2f} times ours; operations {limit:.2f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--questions-a-picture", type=int, default=5, help="VQAv2 has 5.3, GQA's test-dev 31.6")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = word_tokenizer(["<pad>", "</s>", "<unk>"], "</s> $A")
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    texts = [" ".join(draw.choices(words, k=draw.randint(7, 11))) for _ in range(options.questions)]
    picture_of = [number // options.questions_a_picture for number in range(options.questions)]
    pixels = torch.randint(0, 256, (picture_of[-1] + 1, 3, 224, 224), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        name = save_timm(Path(folder) / "eyes", 0, *VISION)
        vision = build_vision(Vision(name=name, precision="fp32", image_size_px=224))
        assert isinstance(vision, VisionTower)
    tokenizer.batch_decode = lambda rows, **_options: [str(row) for row in rows.tolist()]  # it has no such many words
    for kind in ("OPT", "T5"):
        language = random_language(kind, tokenizer)
        compare(
            kind,
            vision,
            random_bridge(vision.width, language.width),
            language,
            pixels,
            picture_of,
            texts,
            options.rounds,
        )


if __name__ == "__main__":
    main()
