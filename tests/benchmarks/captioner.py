"""Captions a second of the fast captioner beside transformers' own generate, in one run, at real decoder size.

    python -m tests.benchmarks.captioner [--images 8] [--device cpu]

Random weights; a decoder of BERT-base size that attends to the 577 tokens of a 384 px picture (a ViT of 2 layers makes
them; BLIP-large has --vision-layers 24 --vision-width 1024). Both write ten captions an image, of the same number of
tokens, by nucleus sampling with a repetition penalty. On a CPU the process's own time counts, not the clock's. Prints
one JSON line; `ratio` is ours over theirs.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_prep.captioning.captioner import Captioner, SamplingSettings
from tests.support.tiny_captioning_models import save_tiny_blip

VOCABULARY = 30524
SIZE_PX = 384
SPREAD = 4.0
"""Deviation of the words' logits: nine tenths of the probability then lie on some hundreds of them."""


def random_model(vision_layers: int, vision_width: int) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 768, "encoder_hidden_size": vision_width, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "bos_token_id": 30522, "pad_token_id": 0,
        "sep_token_id": 102, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": vision_width, "intermediate_size": 4 * vision_width, "num_hidden_layers": vision_layers,
        "num_attention_heads": vision_width // 64, "image_size": SIZE_PX, "patch_size": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():  # fresh weights would make every word as likely, and the nucleus most of the vocabulary
        model.text_decoder.cls.predictions.bias.normal_(0, SPREAD)
    return model


def tiny_processor() -> Any:
    """Only its prompt's tokens matter."""
    from transformers import BlipProcessor

    with tempfile.TemporaryDirectory() as folder:
        return BlipProcessor.from_pretrained(save_tiny_blip(Path(folder) / "blip"))


def seconds_of(work: Callable[[], object], rounds: int, device: str) -> float:
    """The fastest of some rounds."""
    clock, times = time.process_time if device == "cpu" else time.perf_counter, []
    for _ in range(rounds):
        started = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return min(times)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = SamplingSettings(min_length=options.length, max_length=options.length)
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model = random_model(options.vision_layers, options.vision_width).to(options.device, dtype)
    captioner = Captioner(model, tiny_processor(), settings)
    pixels = torch.randn(options.images, 3, SIZE_PX, SIZE_PX)
    keys = [f"key_{number}" for number in range(options.images)]
    prompt = torch.tensor([[*captioner.prompt, captioner.end]], device=options.device)  # generate drops the last

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return captioner._sample(keys, pixels.to(options.device, dtype))

    def theirs() -> torch.Tensor:
        tokens: torch.Tensor = model.generate(
            pixels.to(options.device, dtype), input_ids=prompt.repeat(options.images, 1), do_sample=True,
            top_p=settings.top_p, top_k=0, min_length=options.length, max_length=options.length,
            repetition_penalty=settings.repetition_penalty, num_return_sequences=settings.num_captions,
        )  # fmt: skip
        return tokens

    # Also what warms both up.
    assert ours().shape == theirs().shape == (10 * options.images, options.length)
    mine, other = (seconds_of(work, options.rounds, options.device) for work in (ours, theirs))
    captions = 10 * options.images
    return {
        "device": options.device, "threads": torch.get_num_threads(), "images": options.images,
        "tokens": options.length, "captions_per_s": round(captions / mine, 2),
        "transformers_captions_per_s": round(captions / other, 2), "ratio": round(other / mine, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="at once")
    parser.add_argument("--length", type=int, default=20, help="tokens of a caption with start and prompt")
    parser.add_argument("--vision-layers", type=int, default=2)
    parser.add_argument("--vision-width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
