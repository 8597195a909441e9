"""Frozen weights go straight to the device that computes with them; what a process sets for its kernels."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.config import Language, Vision, parse_recipe
from pipeline.models.language import build_language
from pipeline.models.vision import build_vision
from pipeline.training import engine
from tests.support.tiny_towers import IMAGE_SIZE_PX, tiny_recipe


@pytest.mark.parametrize("name", ["t5", "opt"])
def test_a_language_model_is_read_to_the_device(towers: Path, name: str) -> None:
    import transformers

    settings = Language(name=str(towers / name), precision="fp32")
    auto_class = transformers.AutoModelForSeq2SeqLM if name == "t5" else transformers.AutoModelForCausalLM
    with (
        mock.patch.object(auto_class, "from_pretrained", side_effect=torch.OutOfMemoryError("full")) as read,
        pytest.raises(torch.OutOfMemoryError),  # and not: download it again
    ):
        build_language(settings, "cuda:3")
    assert read.call_args.kwargs["device_map"] == {"": "cuda:3"}
    tower = build_language(settings, "meta")
    assert all(each.is_meta for each in tower.model.parameters())
    assert tower.width == build_language(settings, "cpu").width


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_an_image_encoder_is_built_on_the_device(towers: Path) -> None:
    """Its random weights, too, which timm draws before it reads the real ones."""
    settings = Vision(name=f"local-dir:{towers / 'vision'}", precision="fp32", image_size_px=IMAGE_SIZE_PX)
    drawn, draw = set(), torch.Tensor.normal_

    def watched(tensor: Any, *others: Any, **options: Any) -> Any:
        drawn.add(tensor.device.type)
        return draw(tensor, *others, **options)

    with mock.patch.object(torch.Tensor, "normal_", watched):
        tower = build_vision(settings, "meta")
    assert drawn <= {"meta"}
    assert {each.device.type for each in [*tower.parameters(), *tower.buffers()]} == {"meta"}


def test_no_sum_of_a_product_is_kept_in_16_bits(towers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, generation and evaluation: the last two load a model by the same function."""
    from pipeline import train
    from pipeline.models.build import build_bridge
    from pipeline.training import parts
    from pipeline.weights.native import inference_model

    flags = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    recipe = parse_recipe(tiny_recipe(towers, Path("none.json"), Path("run"), 1, None))
    monkeypatch.setattr(parts, "build_parts", mock.Mock(side_effect=ValueError("enough")))

    def train_until_the_parts_are_built() -> None:
        with pytest.raises(ValueError, match="enough"):
            train.train(recipe, mock.Mock(), {}, mock.Mock())

    for work in (train_until_the_parts_are_built, lambda: inference_model(recipe, build_bridge(recipe), "cpu")):
        for name in names:
            setattr(flags, name, True)
        work()
        assert not any(getattr(flags, name) for name in names)


class Untouchable(dict):  # type: ignore[type-arg]
    """DeepSpeed's table of its kernels: to write one entry looks for all, on a GPU with a warning for each."""

    def __setitem__(self, name: str, value: object) -> None:
        raise AssertionError(f"{name} was written")


def test_on_a_gpu_no_kernel_of_deepspeed_is_looked_for(towers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    recipe = parse_recipe(tiny_recipe(towers, Path("none.json"), Path("run"), 1, None))
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", Untouchable())
    monkeypatch.setattr(deepspeed, "initialize", mock.Mock(return_value=("engine", None, None, None)))
    monkeypatch.setattr(engine, "watch", mock.Mock())
    monkeypatch.setattr(engine.process_group, "limit_waiting", mock.Mock())
    monkeypatch.setattr(engine.process_group, "device_name", lambda: "cuda:0")
    assert engine.build_engine(torch.nn.Linear(2, 2), recipe, {}) == "engine"
    monkeypatch.setattr(engine.process_group, "device_name", lambda: "cpu")
    with pytest.raises(AssertionError, match="deepspeed_shm_comm was written"):
        engine.build_engine(torch.nn.Linear(2, 2), recipe, {})
