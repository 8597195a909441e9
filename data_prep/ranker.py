"""The ranker: how well captions fit their image, as the cosine of any folder that transformers' CLIPModel loads.

BLIP-2 (Li et al. 2023, section 3.4) ranks with CLIP ViT-L/14. fp32 on a CPU, bf16 on a GPU; cosines are taken in fp32.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.weights_folder import load_pretrained

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Ranker:
    """A loaded ranker; see `load_ranker`."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.device = model, model.device
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        self.max_length = int(model.config.text_config.max_position_embeddings)

    def preprocess(self, image: "Image.Image") -> "torch.Tensor":
        """RGB picture -> float32 [3, height, width], by CLIP's own image processor (not the captioner's)."""
        pixels: torch.Tensor = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    def score(self, pixels_B3HW: "torch.Tensor", captions: list[list[str]]) -> list[list[float]]:
        """For each image the cosine in [-1, 1] with each of its own captions (lists may differ in length).

        Texts are padded to the longest of the batch: CLIP's text tower is causal and pools at the end token, so that
        padding changes nothing. Longer ones than the model takes are cut, and keep their end token.
        """
        import torch

        if not any(captions):
            return [[] for _ in captions]
        texts = self.tokenizer(
            [caption for each in captions for caption in each],
            padding="longest",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            image_BE = self.model.get_image_features(pixels_B3HW.to(self.device, self.model.dtype)).pooler_output
            text_NE = self.model.get_text_features(
                texts["input_ids"].to(self.device), attention_mask=texts["attention_mask"].to(self.device)
            ).pooler_output
            owners_N = torch.repeat_interleave(torch.tensor([len(each) for each in captions])).to(self.device)
            cosine_N = torch.cosine_similarity(text_NE.float(), image_BE.float()[owners_N], dim=-1)
        scores = iter(cosine_N.tolist())
        return [[next(scores) for _ in each] for each in captions]


def load_ranker(folder: Path, device: str) -> Ranker:
    """Load a ranker folder. Raises ValueError naming it when it is missing, damaged, or of another kind."""
    return Ranker(*load_pretrained(folder, "--ranker", "CLIPModel", "CLIPProcessor", device))
