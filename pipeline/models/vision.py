"""The frozen image encoder: a timm ViT without its last block. B batch, S side in pixels, P image tokens, I width."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Vision
from pipeline.models.precision import DTYPES, autocast

# Mean and standard deviation of CLIP's images: what a tower uses whose own configuration does not say otherwise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionTower(nn.Module):
    """uint8 pixels -> the second-to-last block's tokens, prefix tokens (CLS) included, without final norm, in fp32.

    Weights of Linear and Conv are held in the recipe's precision; CLS, positions and norms stay fp32, and so does the
    residual stream under autocast. In evaluation mode, without gradients.
    """

    def __init__(self, model: Any, mean: tuple[float, ...], std: tuple[float, ...], precision: str) -> None:
        super().__init__()
        model.prune_intermediate_layers([-2], prune_norm=True, prune_head=True)
        self.model, self.precision = model, precision
        self.width: int = model.num_features
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(DTYPES[precision])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VisionTower":  # noqa: ARG002  (torch's signature)
        """A frozen tower has no training mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] RGB -> fp32 [B, P, I]."""
        normalised = (pixels_B3SS.float() - self.get_buffer("mean")) / self.get_buffer("std")
        with autocast(pixels_B3SS.device.type, self.precision):
            [(patches, prefix)] = self.model.forward_intermediates(
                normalised,
                indices=1,
                return_prefix_tokens=True,
                norm=False,
                output_fmt="NLC",
                intermediates_only=True,
            )
        return torch.cat([prefix, patches], dim=1).float() if prefix is not None else patches.float()


def build_vision(settings: Vision) -> VisionTower:
    """Create the tower and load its weights. Raises ValueError in one line when they are missing or do not fit."""
    import timm

    try:
        model = timm.create_model(settings.name, pretrained=True, num_classes=0, img_size=settings.image_size_px)
    except Exception as error:  # timm and safetensors raise many kinds; all mean that this tower cannot be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"vision.name {settings.name!r}: cannot be loaded ({reason}); name a timm ViT whose weights can be "
            "fetched, or local-dir:FOLDER with config.json and model.safetensors"
        ) from error
    mean, std = model.pretrained_cfg.get("mean", CLIP_MEAN), model.pretrained_cfg.get("std", CLIP_STD)
    return VisionTower(model, tuple(mean), tuple(std), settings.precision)
