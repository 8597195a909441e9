"""Writes captions of images with any model folder that transformers' BlipForConditionalGeneration loads.

BLIP's recipe (Li et al. 2022, section 3.3, and its released code): prompt "a picture of ", nucleus sampling with top p
0.9, 5 to 20 tokens counted with the start token and the prompt, repetition penalty 1.1. fp32 on a CPU, bf16 on a GPU.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.captioning.weights_folder import load_pretrained

if TYPE_CHECKING:
    import torch
    from PIL import Image

SMALLEST_BATCH = 8
"""On a CPU, smaller batches are padded to this many images. Small matrices (seen below 20 rows) are multiplied by
another method, whose last bits differ. Without padding, the captions of an image would depend on the size of its
batch."""


@dataclass(frozen=True)
class SamplingSettings:
    """How captions are sampled. Lengths are in tokens, and count the start token and the prompt."""

    prompt: str = "a picture of "
    num_captions: int = 10
    top_p: float = 0.9
    min_length: int = 5
    max_length: int = 20
    repetition_penalty: float = 1.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if self.num_captions < 1:
            raise ValueError(f"--num-captions {self.num_captions}: must be at least 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"--repetition-penalty {self.repetition_penalty}: must be a finite number above 0")
        if self.min_length > self.max_length:
            raise ValueError(f"--min-length {self.min_length}: must be at most --max-length {self.max_length}")


class Captioner:
    """A loaded captioner with its settings; see `load_captioner`."""

    def __init__(self, model: Any, processor: Any, settings: SamplingSettings) -> None:
        from data_prep.captioning.blip_decoder import FoldedDecoder

        self.vision = model.vision_model
        self.decoder = FoldedDecoder(model.text_decoder)
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        self.settings, self.device = settings, model.device
        text = model.config.text_config
        self.end, self.padding = text.sep_token_id, text.pad_token_id
        words = self.tokenizer(settings.prompt.strip(), add_special_tokens=False)["input_ids"]
        self.prompt = [text.bos_token_id, *words]
        longest = min(settings.max_length, text.max_position_embeddings)
        if not len(self.prompt) < settings.max_length <= longest:
            raise ValueError(
                f"--max-length {settings.max_length}: must be above the {len(self.prompt)} tokens of start and prompt, "
                f"and at most the captioner's limit of {text.max_position_embeddings}"
            )

    def preprocess(self, image: "Image.Image") -> "torch.Tensor":
        """RGB picture -> float32 [3, height, width], by the image processor of the model folder."""
        pixels: torch.Tensor = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def caption(self, keys: list[str], pixels_B3HW: "torch.Tensor") -> list[list[str]]:
        """`num_captions` captions of each image, in the order of sampling, without the prompt; some may be empty or
        equal.

        The captions of an image depend on its key, its pixels and the settings, and not on the rest of its batch.
        """
        import torch

        missing = max(0, SMALLEST_BATCH - len(keys)) if self.device.type == "cpu" else 0
        pixels_B3HW = torch.cat([pixels_B3HW, pixels_B3HW[:1].expand(missing, -1, -1, -1)])
        with torch.inference_mode():
            tokens_NT = self._sample([*keys, *[""] * missing], pixels_B3HW.to(self.device, self.vision.dtype))
        num_captions = self.settings.num_captions
        texts = [self._text(row) for row in tokens_NT[: len(keys) * num_captions].tolist()]
        return [texts[start : start + num_captions] for start in range(0, len(texts), num_captions)]

    def _sample(self, keys: list[str], pixels_B3HW: "torch.Tensor") -> "torch.Tensor":
        """int64 [B * num_captions, T <= max_length]: start token, prompt, caption, end token, padding."""
        import torch

        from data_prep.captioning.nucleus import draw_table, draw_token, penalise_repetition

        settings = self.settings
        num_steps = settings.max_length - len(self.prompt)
        uniform_NK = draw_table(settings.seed, keys, settings.num_captions, num_steps).to(self.device)
        state = self.decoder.start(self.vision(pixel_values=pixels_B3HW).last_hidden_state, settings.max_length)
        prompt_BL = torch.tensor([self.prompt], device=self.device).expand(len(keys), -1)
        hidden_NW = self.decoder.advance(state, prompt_BL).repeat_interleave(settings.num_captions, 0)
        self.decoder.widen(state, settings.num_captions)
        tokens_NT = prompt_BL.repeat_interleave(settings.num_captions, 0)
        done_N = torch.zeros(len(tokens_NT), dtype=torch.bool, device=self.device)
        for step in range(num_steps):
            logits_NV = penalise_repetition(self.decoder.logits(hidden_NW), tokens_NT, settings.repetition_penalty)
            if tokens_NT.shape[1] < settings.min_length:
                logits_NV[:, self.end] = -torch.inf
            drawn_N = draw_token(logits_NV, settings.top_p, uniform_NK[:, step]).masked_fill(done_N, self.padding)
            tokens_NT = torch.cat([tokens_NT, drawn_N[:, None]], 1)
            done_N |= drawn_N == self.end
            if step + 1 == num_steps or bool(done_N.all()):
                break
            hidden_NW = self.decoder.advance(state, drawn_N[:, None])
        return tokens_NT

    def _text(self, tokens: list[int]) -> str:
        caption = tokens[len(self.prompt) :]
        if self.end in caption:
            caption = caption[: caption.index(self.end)]
        text: str = self.tokenizer.decode(caption, skip_special_tokens=True)
        return text.strip()


def load_captioner(folder: Path, settings: SamplingSettings, device: str) -> Captioner:
    """Load a captioner folder. Raises ValueError, with its name, when it is missing, damaged, or of another kind."""
    model, processor = load_pretrained(folder, "--captioner", "BlipForConditionalGeneration", "BlipProcessor", device)
    return Captioner(model, processor, settings)
