"""LoRA: small trained matrices beside the frozen products of a language model, W x + (alpha / rank) B A x.

peft finds the layers and runs them. The matrices are a part of the bridge, as all that is trained: so optimizer, ZeRO,
checkpoints and resuming take them as they take the Q-Former. The language model's layers hold the same modules.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Recipe
from pipeline.config.model_sections import Lora
from pipeline.models.loading import first_line
from pipeline.models.precision import autocast
from pipeline.models.quantised import quieten

ADAPTER = "default"  # peft's name of the one adapter
MATRICES = ("lora_A", "lora_B")


class Matrix(nn.Linear):
    """A or B: fp32 weights, a product in the bridge's precision."""

    def __init__(self, in_features: int, out_features: int, precision: str, device: Any) -> None:
        super().__init__(in_features, out_features, bias=False, device=device)
        self.precision = precision

    def forward(self, values: Tensor) -> Tensor:
        with autocast(values.device.type, self.precision):
            return super().forward(values)


class Beside(nn.Module):
    """What is trained of one layer: A begins at random, B at zero, so that a fresh layer is the frozen one."""

    def __init__(self, layer: Any, rank: int, precision: str, device: Any) -> None:
        super().__init__()
        self.A = Matrix(layer.in_features, rank, precision, device)
        self.B = Matrix(rank, layer.out_features, precision, device)
        self.dropout: nn.Module = layer.lora_dropout[ADAPTER]
        nn.init.kaiming_uniform_(self.A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.B.weight)


def add_lora(model: Any, recipe: Recipe, device: str) -> nn.Module | None:
    """Put fresh matrices into a frozen language model. Returns them as a tree under the layers' names; None if off.

    Raises ValueError in one line when the model has no such layers.
    """
    assert recipe.language is not None
    settings = recipe.language.lora
    if not settings.rank:
        return None
    layers = _layers(model, settings)
    tree = nn.Module()
    for name, layer in layers.items():
        beside = Beside(layer, settings.rank, recipe.qformer.precision, device)
        layer.lora_A[ADAPTER], layer.lora_B[ADAPTER] = beside.A, beside.B
        _put(tree, name, beside)
    return tree


def _layers(model: Any, settings: Lora) -> dict[str, Any]:
    """The layers that peft has put around the wanted ones, by their names in the model."""
    quieten()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer

    wanted = list(settings.targets) if settings.targets else None
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=wanted
    )
    try:
        inject_adapter_in_model(config, model)
    except Exception as error:  # peft has kinds of its own
        raise ValueError(
            f"language.lora.targets {wanted}: name no layers of a {model.config.model_type!r} model "
            f"({first_line(error)}); name its linear layers, as [q_proj, v_proj] of OPT or [q, v] of T5"
        ) from error
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    others = [
        name  # int8's and int4's layers are kinds of nn.Linear
        for name, layer in layers.items()
        if not isinstance(layer, Linear) and not isinstance(layer.get_base_layer(), nn.Linear)
    ]
    if others:
        raise ValueError(f"language.lora.targets {wanted}: {others[0]} is no linear layer; name others")
    return layers


def _put(tree: nn.Module, name: str, module: nn.Module) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        if not hasattr(tree, folder):
            tree.add_module(folder, nn.Module())
        tree = tree.get_submodule(folder)
    tree.add_module(last, module)


@torch.no_grad()
def merge_lora(model: Any) -> None:
    """Add each B A to its layer's weights, in fp32 and then rounded to their number format, and take LoRA out."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        frozen: Any = layer.get_base_layer()
        a, b = (getattr(layer, matrix)[ADAPTER].weight.float() for matrix in MATRICES)
        frozen.weight.copy_(frozen.weight.float() + layer.scaling[ADAPTER] * (b @ a))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, frozen)
    if hasattr(model, "peft_config"):
        del model.peft_config
