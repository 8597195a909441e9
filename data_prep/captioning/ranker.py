"""Scores how well captions fit their image: the cosine of any model folder that transformers' CLIPModel loads.

BLIP-2 (Li et al. 2023, section 3.4) ranks with CLIP ViT-L/14. fp32 on a CPU, bf16 on a GPU; cosines are taken in fp32.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.captioning.weights_folder import load_pretrained

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_BATCH = 128


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

        Equal texts are embedded once. Texts of similar length are embedded together, padded to the longest of
        TEXT_BATCH. CLIP's text tower is causal and pools at the end token, so padding changes nothing. A text that is
        too long for the model is cut, and keeps its end token.
        """
        import torch

        texts = sorted({caption for each in captions for caption in each}, key=lambda text: (len(text), text))
        if not texts:
            return [[] for _ in captions]
        rows = {text: row for row, text in enumerate(texts)}
        with torch.inference_mode():
            image_BE = self.model.get_image_features(pixels_B3HW.to(self.device, self.model.dtype)).pooler_output
            text_NE = torch.cat(
                [self._embed(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
            )
            return [
                torch.cosine_similarity(
                    text_NE[[rows[text] for text in each]].float(), image_E.float(), dim=-1
                ).tolist()
                for image_E, each in zip(image_BE, captions, strict=True)
            ]

    def _embed(self, texts: list[str]) -> "torch.Tensor":
        tokens = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        embedding: torch.Tensor = self.model.get_text_features(
            tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
        ).pooler_output
        return embedding


def load_ranker(folder: Path, device: str) -> Ranker:
    """Load a ranker folder. Raises ValueError, with its name, when it is missing, damaged, or of another kind."""
    return Ranker(*load_pretrained(folder, "--ranker", "CLIPModel", "CLIPProcessor", device))
