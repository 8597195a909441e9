"""Fingerprints of frozen models: they change when the weights change, or anything else that decides the outputs."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, its bits well mixed (2^64 over the golden ratio), as a signed number
CHUNK = 1 << 24  # elements that are weighted at once: bounds the memory
SMALL = 1 << 12  # elements; smaller buffers go whole into the fingerprint
TRAINED, WRAPPED = ("lora_A", "lora_B"), ".base_layer."  # in peft's names: LoRA's matrices; the layer beside them
UNTOLD = ("transformers_version", "_name_or_path", "_from_model_config")


def fingerprint(module: "nn.Module") -> str:
    """sha256 over each parameter's and saved buffer's name, type, shape and sum of bits.

    An element's bits are multiplied by a number of its place. What LoRA trains does not count. Tensors are read once,
    on their device, and integer sums do not depend on the order.
    """
    import torch

    saved = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in saved}
    lines, sums = [], []
    tensors = {frozen_name(name): each for name, each in (dict(module.named_parameters()) | buffers).items()}
    for name, tensor in sorted((name, each) for name, each in tensors.items() if name is not None):
        lines.append(f"{name} {tensor.dtype} {tuple(getattr(tensor, 'ds_shape', tensor.shape))}")
        sums.append(_sum_of_bits(tensor.detach()))
    numbers = torch.stack(sums).tolist() if sums else []
    return hashlib.sha256(
        "\n".join(f"{line} {number}" for line, number in zip(lines, numbers, strict=True)).encode()
    ).hexdigest()


def frozen_name(name: str) -> str | None:
    """The name that a frozen tensor has without LoRA; None for LoRA's own."""
    return None if any(part in TRAINED for part in name.split(".")) else name.replace(WRAPPED, ".")


def _sum_of_bits(tensor: "Tensor") -> "Tensor":
    """Modulo 2^64, where adding and multiplying wrap around."""
    import torch

    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    flat = tensor.contiguous().view(-1).view(kind)
    for start in range(0, len(flat), CHUNK):
        bits = flat[start : start + CHUNK]
        places = torch.arange(start, start + len(bits), device=tensor.device)
        total += (bits * (places * STEP).bitwise_or_(1)).sum()
    return total


def fingerprint_of_settings(towers: Iterable["nn.Module"], tokenizer: Any = None) -> str:
    """sha256 over what decides about outputs besides weights: modules and small buffers, configurations and generation
    defaults of transformers models, the tokenizer's vocabulary and rules."""
    from transformers import PreTrainedModel

    texts: list[str] = []
    if tokenizer is not None:
        texts = [json.dumps(sorted(tokenizer.get_vocab().items())), str(tokenizer.special_tokens_map)]
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        rules = json.loads(backend.to_str())
        texts.append(_told({name: value for name, value in rules.items() if name not in ("padding", "truncation")}))
    for tower in towers:
        texts.append(repr(tower))
        texts += [f"{name} {each.tolist()}" for name, each in tower.named_buffers() if each.numel() <= SMALL]
        models = [each for each in tower.modules() if isinstance(each, PreTrainedModel)]
        texts += [_told(each.config.to_dict()) for each in models]
        texts += [_told(each.generation_config.to_dict()) for each in models if each.can_generate()]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def fingerprint_of_qformer(bridge: Any, tokenizer: Any = None) -> str:
    """sha256 over a bridge's Q-Former without its weights, and the tokenizer of the texts that it reads, if it does."""
    tokens = fingerprint_of_settings([], tokenizer) if tokenizer is not None else ""
    return hashlib.sha256(f"{bridge.qformer.shape} {tokens}".encode()).hexdigest()


def _told(settings: dict[str, Any]) -> str:
    told = {name: value for name, value in settings.items() if name not in UNTOLD}
    return json.dumps(told, sort_keys=True, default=str)
