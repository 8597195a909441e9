"""The image encoder: frozen, in the recipe's precision and outside the engine, or trained, as a part of the bridge.

Shapes: B batch, S side in pixels, P image tokens, I width. Both take uint8 pixels [B, 3, S, S] to tokens [B, P, I].
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.config import Vision
from pipeline.models.compiling import longest_list
from pipeline.models.encoders import Encoder, TimmEncoder, TransformersEncoder, load_encoder, unread_parameters
from pipeline.models.fp8 import check_gpu, to_fp8
from pipeline.models.precision import DTYPES, autocast


class _Pixels(nn.Module):
    """An encoder with what makes its pixels of a picture's."""

    def __init__(self, encoder: Encoder, precision: str) -> None:
        super().__init__()
        self.loaded = encoder
        self.encoder: TimmEncoder | TransformersEncoder = encoder.module
        self.precision, self.width = precision, encoder.module.width
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(1, 3, 1, 1) * 255, persistent=False)

    def encode(self, pixels_B3SS: Tensor) -> Tensor:
        normalised = (pixels_B3SS.float() - self.get_buffer("mean")) / self.get_buffer("std")
        with autocast(pixels_B3SS.device.type, self.precision):
            tokens: Tensor = self.encoder(normalised)
        return tokens


class VisionTower(_Pixels):
    """uint8 pixels -> the second-to-last block's tokens. In evaluation mode, without gradients.

    Weights of Linear and Conv are held in the recipe's precision; CLS, positions and norms stay fp32, and so does the
    residual stream under autocast. An fp16 tower hands its tokens on in fp16: half the bytes to send and to read.
    An fp8 tower is an fp16 one whose blocks multiply in fp8.
    """

    def __init__(self, encoder: Encoder, precision: str) -> None:
        super().__init__(encoder, precision)
        if precision == "fp8":
            to_fp8(self.encoder)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(DTYPES[precision])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VisionTower":  # noqa: ARG002  (torch's signature)
        """A frozen tower has no training mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] RGB -> [B, P, I], fp16 of an fp16 or fp8 tower, else fp32."""
        tokens = self.encode(pixels_B3SS)
        return tokens.half() if DTYPES[self.precision] == torch.float16 else tokens.float()


class TrainedVision(_Pixels):
    """uint8 pixels -> the second-to-last block's tokens, with gradients. All weights are fp32, also under autocast.

    bf16 weights would not do: at fine-tuning's learning rates most of AdamW's steps are below half of their spacing.
    Parameters that the tokens do not depend on, as those after the last block, are not trained: `requires_grad` is off.
    """

    def __init__(self, encoder: Encoder, settings: Vision) -> None:
        super().__init__(encoder, settings.precision)
        self.float().requires_grad_(True)
        unread = unread_parameters(self.encoder, settings.image_size_px)
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(name not in unread)
        if settings.activation_checkpointing:
            random = bool(settings.dropout or settings.drop_path)
            for block in longest_list(self.encoder):
                again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=random)
                block.forward = again  # type: ignore[method-assign]

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] RGB -> fp32 [B, P, I]."""
        return self.encode(pixels_B3SS).float()

    def frozen(self, precision: str) -> VisionTower:
        """The encoder as evaluation uses it, with the same weights; training cannot go on."""
        for block in longest_list(self.encoder):
            block.__dict__.pop("forward", None)  # of activation checkpointing
        return VisionTower(self.loaded, precision)

    def layers(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """What is trained, from below: first what is before the blocks ("patch"), then each block ("block 0", ...)."""
        blocks = [[p for p in block.parameters() if p.requires_grad] for block in longest_list(self.encoder)]
        of_blocks = {id(parameter) for block in blocks for parameter in block}
        yield "patch", [p for p in self.parameters() if p.requires_grad and id(p) not in of_blocks]
        for number, block in enumerate(block for block in blocks if block):
            yield f"block {number}", block


def build_vision(settings: Vision, device: str = "cpu") -> VisionTower | TrainedVision:
    """The encoder on the device, with its weights. Raises ValueError in one line when they are missing or do not fit,
    or when the device has no products in the encoder's precision."""
    if settings.precision == "fp8":
        check_gpu(device)
    encoder = load_encoder(settings, device)
    vision = TrainedVision(encoder, settings) if settings.trained else VisionTower(encoder, settings.precision)
    return vision.to(device)
