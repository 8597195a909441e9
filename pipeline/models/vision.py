"""The frozen image encoder: any timm ViT or transformers vision model, without its last block.

Shapes: B batch, S side in pixels, P image tokens, I width.
What a tower must offer: `width` and `image_size_px`, and uint8 pixels [B, 3, S, S] -> tokens [B, P, I]. A new kind
of encoder is one class that takes normalised pixels to tokens; see TimmEncoder and TransformersEncoder.
"""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.config import Vision
from pipeline.models.fp8 import check_gpu, to_fp8
from pipeline.models.loading import first_line, not_loaded
from pipeline.models.precision import DTYPES, autocast

TRANSFORMERS = "transformers:"  # before the name of a transformers model in recipes
# Mean and standard deviation of CLIP's images: what a tower uses whose own configuration does not say otherwise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TimmEncoder(nn.Module):
    """Normalised pixels -> the second-to-last block's tokens of a timm ViT, CLS and other prefixes included."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model.prune_intermediate_layers([-2], prune_norm=True, prune_head=True)
        self.model, self.width = model, int(model.num_features)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        [found] = self.model.forward_intermediates(
            pixels_B3SS, indices=1, return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
        if isinstance(found, Tensor):
            return found  # a ViT without prefix tokens, as SigLIP's
        patches, prefix = found
        return torch.cat([prefix, patches], dim=1)


class TransformersEncoder(nn.Module):
    """The same of a transformers vision model, or of the vision half of a model that has two (CLIP, SigLIP)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = getattr(model, "vision_model", model)
        self.width = int(self.model.config.hidden_size)
        self.tokens: Tensor | None = None
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        blocks = max(lists, key=len)
        blocks[-1] = _Nothing()
        blocks[-2].register_forward_hook(self._keep)
        interpolates = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if interpolates else {}

    def _keep(self, _block: nn.Module, _inputs: Any, output: Any) -> None:
        self.tokens = output[0] if isinstance(output, tuple) else output

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        self.model(pixel_values=pixels_B3SS, **self.options)
        tokens, self.tokens = self.tokens, None
        return cast(Tensor, tokens)


class _Nothing(nn.Module):
    """In the place of the last block, whose output nobody reads."""

    def forward(self, hidden: Tensor, *_more: Any, **_options: Any) -> Tensor:
        return hidden


class VisionTower(nn.Module):
    """uint8 pixels -> the second-to-last block's tokens. In evaluation mode, without gradients.

    Weights of Linear and Conv are held in the recipe's precision; CLS, positions and norms stay fp32, and so does the
    residual stream under autocast. An fp16 tower hands its tokens on in fp16: half the bytes to send and to read.
    An fp8 tower is an fp16 one whose blocks multiply in fp8.
    """

    def __init__(
        self,
        encoder: TimmEncoder | TransformersEncoder,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        precision: str,
    ) -> None:
        super().__init__()
        self.encoder, self.precision, self.width = encoder, precision, encoder.width
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        if precision == "fp8":
            to_fp8(encoder)
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
        normalised = (pixels_B3SS.float() - self.get_buffer("mean")) / self.get_buffer("std")
        with autocast(pixels_B3SS.device.type, self.precision):
            tokens: Tensor = self.encoder(normalised)
        return tokens.half() if DTYPES[self.precision] == torch.float16 else tokens.float()


def build_vision(settings: Vision, device: str = "cpu") -> VisionTower:
    """The tower on the device, with its weights. Raises ValueError in one line when they are missing or do not fit, or
    when the device has no products in the tower's precision."""
    if settings.precision == "fp8":
        check_gpu(device)
    load = _load_transformers if settings.name.startswith(TRANSFORMERS) else _load_timm
    try:
        model, mean, std = load(settings, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # timm, transformers and safetensors raise many kinds of errors
        raise _not_loaded(settings, error) from error
    return VisionTower(_encoder(model, settings), mean, std, settings.precision).to(device)


def _encoder(model: Any, settings: Vision) -> TimmEncoder | TransformersEncoder:
    try:
        if settings.name.startswith(TRANSFORMERS):
            return TransformersEncoder(model)
        set_image_size(model, settings.image_size_px)
        return TimmEncoder(model)
    except Exception as error:  # each architecture has kinds of its own
        raise _not_a_vit(settings, error) from error


def encoder_on_meta(settings: Vision) -> TimmEncoder | TransformersEncoder:
    """The encoder's shapes without its weights. Raises ValueError in one line when its configuration is missing."""
    import timm
    from transformers import AutoConfig, AutoModel

    try:
        if settings.name.startswith(TRANSFORMERS):
            config = AutoConfig.from_pretrained(settings.name.removeprefix(TRANSFORMERS))
            with torch.device("meta"):
                return _encoder(AutoModel.from_config(config), settings)
        with torch.device("meta"):
            return _encoder(timm.create_model(settings.name, num_classes=0), settings)
    except ValueError as error:
        if "cannot serve as the image encoder" in str(error):
            raise
        raise _not_loaded(settings, error) from error
    except Exception as error:  # as above
        raise _not_loaded(settings, error) from error


def vision_width(settings: Vision) -> int:
    """The width of the tower's tokens, found without its weights."""
    import timm
    from transformers import AutoConfig

    try:
        if settings.name.startswith(TRANSFORMERS):
            config = AutoConfig.from_pretrained(settings.name.removeprefix(TRANSFORMERS))
        else:
            with torch.device("meta"):
                return int(timm.create_model(settings.name, num_classes=0).num_features)
    except Exception as error:  # as above
        raise _not_loaded(settings, error) from error
    try:
        return int(getattr(config, "vision_config", config).hidden_size)
    except AttributeError as error:
        raise _not_a_vit(settings, error) from error


Loaded = tuple[Any, tuple[float, ...], tuple[float, ...]]  # a model, mean and deviation of its pixels


def _load_transformers(settings: Vision, device: str) -> Loaded:
    from transformers import AutoImageProcessor, AutoModel

    name = settings.name.removeprefix(TRANSFORMERS)
    processor: Any = AutoImageProcessor.from_pretrained(name)
    model = AutoModel.from_pretrained(name, dtype=torch.float32, device_map={"": device})
    return model, tuple(processor.image_mean or CLIP_MEAN), tuple(processor.image_std or CLIP_STD)


def _load_timm(settings: Vision, device: str) -> Loaded:
    import timm

    with torch.device(device):  # timm draws random weights first: on a CPU, a minute a rank for ViT-g
        model = timm.create_model(settings.name, pretrained=True, num_classes=0)
    pixels = cast(Any, model).pretrained_cfg
    return model, tuple(pixels.get("mean", CLIP_MEAN)), tuple(pixels.get("std", CLIP_STD))


def set_image_size(model: Any, size_px: int) -> None:
    """Change a timm ViT's input size. Its positions are interpolated as LAVIS and transformers do it, not as timm does:
    plain bicubic, without antialiasing, whose kernel is another one."""
    positions_1PI, old_grid = getattr(model, "pos_embed", None), model.patch_embed.grid_size
    if model.patch_embed.img_size == (size_px, size_px):
        return
    model.set_input_size(img_size=(size_px, size_px))
    grid = model.patch_embed.grid_size
    if positions_1PI is None or grid == old_grid:
        return
    num_prefix = positions_1PI.shape[1] - old_grid[0] * old_grid[1]
    prefix, patches = positions_1PI[:, :num_prefix], positions_1PI[:, num_prefix:]
    plane_1IHW = patches.transpose(1, 2).unflatten(2, old_grid)
    if plane_1IHW.is_cuda:
        plane_1IHW = plane_1IHW.cpu()  # the same bits on every device
    resized_1IHW = nn.functional.interpolate(plane_1IHW, size=grid, mode="bicubic", align_corners=False)
    resized_1PI = resized_1IHW.flatten(2).transpose(1, 2).to(prefix.device)
    model.pos_embed = nn.Parameter(torch.cat([prefix, resized_1PI], dim=1))


def _not_a_vit(settings: Vision, error: Exception) -> ValueError:
    return ValueError(
        f"vision.name {settings.name!r} at {settings.image_size_px} px: cannot serve as the image encoder "
        f"({first_line(error)}); name a plain ViT"
    )


def _not_loaded(settings: Vision, error: Exception) -> ValueError:
    folders = "local-dir:FOLDER of timm (config.json, model.safetensors) or transformers:FOLDER"
    return not_loaded(f"vision.name {settings.name!r}", error, folders)
