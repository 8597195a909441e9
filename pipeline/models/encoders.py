"""Image encoders: any timm ViT or transformers vision model, without its last block.

Shapes: B batch, S side in pixels, P image tokens, I width.
A new kind of encoder is one class that takes normalised pixels to tokens; see TimmEncoder and TransformersEncoder.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.config import Vision
from pipeline.models.loading import first_line, load_of_transformers, not_loaded, refuse_missing
from pipeline.weight_sets import check_weight_sets

TRANSFORMERS = "transformers:"  # before the name of a transformers model in recipes
TIMM_FOLDER = "local-dir:"
# Mean and standard deviation of CLIP's images: what an encoder uses whose own configuration does not say otherwise.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Names that transformers' configurations have for the two probabilities.
DROPOUT_NAMES = ("hidden_dropout_prob", "dropout", "hidden_dropout")
DROP_PATH_NAMES = ("drop_path_rate",)


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


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder; its pixels in [0, 1] have this mean and standard deviation taken off."""

    module: TimmEncoder | TransformersEncoder
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_encoder(settings: Vision, device: str, pretrained: bool = True) -> Encoder:
    """The encoder on the device; unless `pretrained`, without its weights, for others to be put in. Raises ValueError
    in one line when something is missing or does not fit."""
    load = _load_transformers if settings.name.startswith(TRANSFORMERS) else _load_timm
    try:
        model, mean, std, missing = load(settings, device, pretrained)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # timm, transformers and safetensors raise many kinds of errors
        raise _not_loaded(settings, error) from error
    module = _without_last_block(model, settings)
    if missing:
        _check_missing(model, missing, module, settings)
    return Encoder(module, mean, std)


def _check_missing(model: Any, missing: list[str], module: nn.Module, settings: Vision) -> None:
    """Raises ValueError when the tokens depend on a missing tensor. The others, as a pooler's, become zero: drawn at
    random, they would look like another encoder at every start."""
    unread = unread_parameters(module, settings.image_size_px)
    read = {id(parameter) for name, parameter in module.named_parameters() if name not in unread}
    parameters = dict(model.named_parameters())
    try:
        refuse_missing([name for name in missing if id(parameters.get(name)) in read])
    except ValueError as error:
        raise _not_loaded(settings, error) from error
    for name in missing:
        if name in parameters:
            parameters[name].data.zero_()


@torch.enable_grad()
def unread_parameters(encoder: nn.Module, side_px: int) -> set[str]:
    """Names of the parameters on which the tokens do not depend. Found with shapes alone: nothing is computed."""
    parameters = {
        name: torch.empty_like(parameter, device="meta", requires_grad=True)
        for name, parameter in encoder.named_parameters()
    }
    buffers = {name: torch.empty_like(buffer, device="meta") for name, buffer in encoder.named_buffers()}
    pixels_13SS = torch.empty((1, 3, side_px, side_px), device="meta")
    tokens = torch.func.functional_call(encoder, parameters | buffers, (pixels_13SS,))
    gradients = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}


def encoder_on_meta(settings: Vision) -> TimmEncoder | TransformersEncoder:
    """The encoder's shapes alone. Raises ValueError in one line when its configuration is missing."""
    return load_encoder(settings, "meta", pretrained=False).module


def _without_last_block(model: Any, settings: Vision) -> TimmEncoder | TransformersEncoder:
    try:
        if settings.name.startswith(TRANSFORMERS):
            return TransformersEncoder(model)
        set_image_size(model, settings.image_size_px)
        return TimmEncoder(model)
    except Exception as error:  # each architecture has kinds of its own
        raise _not_a_vit(settings, error) from error


Loaded = tuple[Any, tuple[float, ...], tuple[float, ...], list[str]]
"""A model, mean and deviation of its pixels, and the names of its tensors that its files lack."""


def _load_transformers(settings: Vision, device: str, pretrained: bool) -> Loaded:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    name = settings.name.removeprefix(TRANSFORMERS)
    config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    _set_probability(config, "dropout", settings.dropout, DROPOUT_NAMES)
    _set_probability(config, "drop_path", settings.drop_path, DROP_PATH_NAMES)
    missing: list[str] = []
    if not pretrained:
        with torch.device(device):
            model: Any = AutoModel.from_config(config, trust_remote_code=False)
    else:
        options = {"config": config, "dtype": torch.float32, "device_map": {"": device}}
        model, missing = load_of_transformers(AutoModel, name, **options)
    if device == "meta":
        return model, CLIP_MEAN, CLIP_STD, missing
    processor: Any = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    return model, tuple(processor.image_mean or CLIP_MEAN), tuple(processor.image_std or CLIP_STD), missing


def _set_probability(config: Any, field: str, value: float, names: tuple[str, ...]) -> None:
    """Set what a recipe asks for, in the configuration of a model or of its vision half."""
    if not value:
        return
    config = getattr(config, "vision_config", config)
    there = [name for name in names if hasattr(config, name)]
    if not there:
        raise ValueError(f"vision.{field} {value}: a {config.model_type} has none; set 0")
    for name in there:
        setattr(config, name, value)


def _load_timm(settings: Vision, device: str, pretrained: bool) -> Loaded:
    import timm

    given = {"proj_drop_rate": settings.dropout, "drop_path_rate": settings.drop_path}
    options: Any = {name: value for name, value in given.items() if value}
    if not pretrained:
        options["num_classes"] = 0  # with weights, timm would then let any of them be missing
    elif settings.name.startswith(TIMM_FOLDER):
        check_weight_sets(Path(settings.name.removeprefix(TIMM_FOLDER)))
    with torch.device(device):  # timm draws random weights first: on a CPU, a minute a rank for ViT-g
        model = timm.create_model(settings.name, pretrained=pretrained, **options)
    pixels = cast(Any, model).pretrained_cfg
    return model, tuple(pixels.get("mean", CLIP_MEAN)), tuple(pixels.get("std", CLIP_STD)), []


def vision_width(settings: Vision) -> int:
    """The width of the encoder's tokens, found without its weights."""
    import timm
    from transformers import AutoConfig

    try:
        if settings.name.startswith(TRANSFORMERS):
            name = settings.name.removeprefix(TRANSFORMERS)
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        else:
            with torch.device("meta"):
                return int(timm.create_model(settings.name, num_classes=0).num_features)
    except Exception as error:  # timm, transformers and safetensors raise many kinds of errors
        raise _not_loaded(settings, error) from error
    try:
        return int(getattr(config, "vision_config", config).hidden_size)
    except AttributeError as error:
        raise _not_a_vit(settings, error) from error


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
