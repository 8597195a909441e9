"""torch.compile for the blocks of the towers and the Q-Former: what is between two products becomes one kernel."""

import logging
import os
import shutil
from typing import Any, cast

import torch
from torch import nn

from pipeline.config.sections import Run
from pipeline.models.qformer import QFormer
from pipeline.models.qformer_layer import Layer

log = logging.getLogger(__name__)


def compile_blocks(
    run: Run, device: str, vision: nn.Module | None, qformer: QFormer | None, language: nn.Module | None
) -> bool:
    """Compile what a recipe's `run.compile` asks for, in place: names, weights and results up to rounding stay. Returns
    whether this run compiles.

    None stands for what is not to be compiled. Says so when this machine has no compiler; what cannot be compiled runs
    as it is, with torch's warning.
    """
    if run.compile == "off" or (run.compile == "auto" and device == "cpu"):
        return False
    if lacking := missing_compiler(device):
        log.warning("run.compile: this machine lacks %s; blocks run one operation at a time, slower", lacking)
        return False
    config: Any = torch._dynamo.config
    config.suppress_errors, config.recompile_limit = True, 64  # all passes of a layer, in training and validation
    done = []
    if vision is not None:
        done.append(f"{compile_vision(vision)} of the image encoder")
    if qformer is not None:
        done.append(f"{compile_qformer(qformer)} of the Q-Former")
    if language is not None:
        done.append(f"{compile_language(language)} of the language model")
    if done:
        log.info("compiled blocks: %s; the first steps take some minutes", ", ".join(done))
    return True


def missing_compiler(device: str) -> str | None:
    """What torch.compile needs and this machine lacks, if anything."""
    names = [os.environ.get("CXX") or os.environ.get("CC") or "", "g++", "gcc", "clang"]
    if not any(shutil.which(name) for name in names if name):
        return "a C++ compiler (g++)"
    if device != "cpu":
        try:
            import triton  # type: ignore[import-untyped]  # noqa: F401
        except ImportError:
            return "triton"
    return None


def compile_vision(vision: nn.Module) -> int:
    """Compile the blocks of an image encoder in place. Names and weights stay. Returns their number."""
    return _compile_modules(longest_list(vision), dynamic=False)


def compile_language(model: nn.Module) -> int:
    """Compile the layers of a language model in place, for texts of any length. Returns their number."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return _compile_modules([each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)], True)


def compile_qformer(qformer: QFormer) -> int:
    """Compile a Q-Former's layers in place, for texts of any length. Returns their number."""
    has_texts = qformer.text_embeddings is not None
    for each in qformer.layers:
        layer: Any = cast(Layer, each)
        layer.read = torch.compile(layer.read, dynamic=has_texts)
    return len(qformer.layers)


def longest_list(module: nn.Module) -> list[nn.Module]:
    """A transformer's blocks are its longest list of modules."""
    lists = [list(each) for each in module.modules() if isinstance(each, nn.ModuleList | nn.Sequential)]
    return max(lists, key=len, default=[])


def _compile_modules(modules: list[nn.Module], dynamic: bool) -> int:
    for module in modules:
        module.compile(dynamic=dynamic)  # type: ignore[no-untyped-call]
    return len(modules)
