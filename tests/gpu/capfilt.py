"""CapFilt's speed with BLIP-large and CLIP ViT-L/14 (random weights, bf16 on a GPU): from JPEGs to scored captions.

The goal is 300 pictures a second: a captioner that writes ten captions a picture, and a ranker that scores them.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from data_prep.captioning.candidates import WINDOW, make_candidates
from data_prep.captioning.captioner import Captioner, SamplingSettings
from data_prep.captioning.ranker import Ranker
from data_prep.shards.tar_files import Sample
from tests.gpu.checks import Checks, wait_for
from tests.gpu.pictures import photos

GOAL = 300.0  # pictures a second
PICTURES, WIDTH_PX, HEIGHT_PX = 768, 512, 384
WORDS = 30522
SPREAD = 4.0  # of the words' logits: nine tenths of the probability then lie on some hundreds of them
BATCH = 64


@cache
def pictures(checks: Checks) -> list[Sample]:
    cores = len(os.sched_getaffinity(0))
    return photos(4 if checks.tiny else PICTURES, WIDTH_PX, HEIGHT_PX, 1 if checks.tiny else max(1, cores // 2))


def prepare(checks: Checks) -> None:
    """The pictures, and imports."""
    from transformers import BlipForConditionalGeneration, CLIPModel  # noqa: F401

    pictures(checks)


def run(checks: Checks) -> None:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if checks.device == "cuda" else torch.float32
    captioner = blip_large(checks, dtype)
    ranker = clip_large(checks, dtype)
    samples, threads = pictures(checks), min(16, len(os.sched_getaffinity(0)))
    count = len(samples)

    def whole(chosen: list[Any]) -> list[Any]:
        return list(make_candidates(chosen, captioner, ranker, batch_size=BATCH, num_threads=threads))

    whole(samples[: 2 * WINDOW] if not checks.tiny else samples)  # which warms up
    wait_for(checks.device)
    started = time.perf_counter()
    made = whole(samples)
    seconds = time.perf_counter() - started
    checks.figure("CapFilt, pictures/s", count / seconds, least=GOAL)
    captions = [each for _, candidates in made for each in candidates or []]
    wanted = count * (captioner.settings.num_captions + 2)
    checks.report("candidates of all pictures", len(captions), f"== {wanted}", len(captions) == wanted)
    scored = [each.score for each in captions if each.caption]
    checks.is_true("every caption with words has a cosine", all(s is not None and -1.01 <= s <= 1.01 for s in scored),
                   f"{len(scored)} captions")  # fmt: skip
    different = len({each.caption for each in captions if each.source == "synthetic"})
    checks.at_least("different captions", different, count)
    with checks.guarded("parts of CapFilt"):
        parts(checks, captioner, ranker, samples, dtype)


def parts(checks: Checks, captioner: Captioner, ranker: Ranker, samples: list[Any], dtype: torch.dtype) -> None:
    """Each part alone: none may be slower than the goal."""
    from data_prep.captioning.candidates import decode

    batch = 2 if checks.tiny else BATCH
    keys = [sample.key for sample in samples[:batch]]
    decoded = [decode(sample.jpeg) for sample in samples[:batch]]
    images = [image for image in decoded if image is not None]
    speed(checks, "one thread's preparation", batch,
          lambda: [(captioner.preprocess(each), ranker.preprocess(each)) for each in images], 40)  # fmt: skip
    for_captioner = torch.stack([captioner.preprocess(each) for each in images])
    for_ranker = torch.stack([ranker.preprocess(each) for each in images])
    speed(checks, "captioner", batch, lambda: captioner.caption(keys, for_captioner), GOAL)
    captions = captioner.caption(keys, for_captioner)
    texts = [[text for text in each if text] for each in captions]
    speed(checks, "ranker", batch, lambda: ranker.score(for_ranker, texts), 2 * GOAL)


def speed(checks: Checks, name: str, count: int, work: Callable[[], object], least: float) -> None:
    work()
    wait_for(checks.device)
    started, rounds = time.perf_counter(), 1 if checks.tiny else 4
    for _ in range(rounds):
        work()
    wait_for(checks.device)
    checks.figure(f"{name}, pictures/s", count * rounds / (time.perf_counter() - started), least=least)


def blip_large(checks: Checks, dtype: torch.dtype) -> Captioner:
    """The shape of BLIP-large, or with `tiny` few layers of it."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    width, layers, text_layers = (64, 1, 1) if checks.tiny else (1024, 24, 12)
    text = {
        "vocab_size": WORDS + 2, "hidden_size": 64 if checks.tiny else 768, "encoder_hidden_size": width,
        "intermediate_size": 128 if checks.tiny else 3072, "num_hidden_layers": text_layers,
        "num_attention_heads": 1 if checks.tiny else 12, "bos_token_id": WORDS, "pad_token_id": 0,
        "sep_token_id": 3, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "image_size": 384, "patch_size": 16,
    }  # fmt: skip
    with torch.device(checks.device):
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).to(dtype).eval()
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias.normal_(0, SPREAD)
    folder = checks.output / "words"
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
    vocabulary = [*special, *(f"word{number}" for number in range(WORDS - len(special)))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    processor = BlipProcessor(BlipImageProcessor(size={"height": 384, "width": 384}), tokenizer)
    return Captioner(model, processor, SamplingSettings())


def clip_large(checks: Checks, dtype: torch.dtype) -> Ranker:
    """The shape of CLIP ViT-L/14 at 224 px, with the processor of a tiny one whose words are the captioner's."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    width, layers, text_width, text_layers = (64, 1, 64, 1) if checks.tiny else (1024, 24, 768, 12)
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "image_size": 224, "patch_size": 14,
    }  # fmt: skip
    text = {
        "vocab_size": WORDS + 8, "hidden_size": text_width, "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_layers, "num_attention_heads": text_width // 64, "max_position_embeddings": 77,
        "bos_token_id": WORDS + 1, "eos_token_id": WORDS + 2, "pad_token_id": WORDS + 2,
    }  # fmt: skip
    with torch.device(checks.device):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=text_width))
    images = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    return Ranker(model.to(dtype).eval(), CLIPProcessor(images, word_tokenizer(checks.output / "words")))


def word_tokenizer(folder: Path) -> Any:
    """A word is a token; start and end stand around a text, as CLIP has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = (folder / "vocab.txt").read_text().split()
    start, end = "<|startoftext|>", "<|endoftext|>"
    numbers = {word: number for number, word in enumerate([*words, "<unk>", start, end])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing((end, numbers[end]), (start, numbers[start]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end, unk_token="<unk>",
        model_max_length=77,
    )  # fmt: skip
