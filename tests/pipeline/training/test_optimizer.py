"""AdamW's groups and the learning rate of each step."""

import math

import pytest
import torch
from torch import nn

from pipeline.config import Optimizer
from pipeline.training.optimizer import build_optimizer, learning_rate
from tests.support.random_bridges import random_stage1, random_stage2

SETTINGS = Optimizer(
    peak_learning_rate=1e-4, minimum_learning_rate=1e-5, warmup_steps=4, betas=(0.8, 0.9), weight_decay=0.3
)


@pytest.mark.parametrize("bridge", [random_stage1(), random_stage2(16)], ids=["stage 1", "stage 2"])
def test_every_parameter_is_trained_and_matrices_alone_decay(bridge: nn.Module) -> None:
    optimizer = build_optimizer(bridge, SETTINGS)
    decayed, others = optimizer.param_groups
    names = {id(parameter): name for name, parameter in bridge.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert all(group["betas"] == (0.8, 0.9) for group in (decayed, others))
    found = [names[id(parameter)] for group in (decayed, others) for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())
    for parameter in others["params"]:
        name = names[id(parameter)]
        assert name.endswith("bias") or "layer_norm" in name or name.startswith("ln_vision") or name == "temperature"
    for parameter in decayed["params"]:
        assert not names[id(parameter)].endswith("bias") and "norm" not in names[id(parameter)]
    assert "qformer.query_tokens" in [names[id(parameter)] for parameter in decayed["params"]]


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, SETTINGS).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_decay_is_decoupled_and_spares_biases() -> None:
    model = nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(model, SETTINGS)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 1e-4 * 0.3))
    assert torch.equal(model.bias.detach(), before[1])


def test_learning_rate_warms_up_linearly_then_falls_as_a_cosine() -> None:
    rates = [learning_rate(step, 24, SETTINGS) for step in range(25)]
    assert rates[:4] == pytest.approx([0.25e-4, 0.5e-4, 0.75e-4, 1e-4])
    assert rates[4] == pytest.approx(1e-4)
    assert rates[14] == pytest.approx((1e-4 + 1e-5) / 2)  # halfway
    assert rates[9] == pytest.approx(1e-5 + 0.9e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[24] == pytest.approx(1e-5)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_learning_rate_without_warmup_or_with_nothing_after_it() -> None:
    assert learning_rate(0, 10, Optimizer(warmup_steps=0, peak_learning_rate=1e-3)) == pytest.approx(1e-3)
    short = Optimizer(warmup_steps=10, peak_learning_rate=1e-3)
    assert [learning_rate(step, 2, short) for step in (0, 1)] == pytest.approx([1e-4, 2e-4])


def test_a_warmup_may_start_at_a_rate_of_its_own() -> None:
    settings = SETTINGS.model_copy(update={"warmup_start": 2e-5})
    rates = [learning_rate(step, 24, settings) for step in range(25)]
    assert rates[:5] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert rates[4:] == [learning_rate(step, 24, SETTINGS) for step in range(4, 25)]


def test_the_staircase_is_lavis_captioning_schedule() -> None:
    """5 epochs of 6 steps: by hand, cos(36), cos(72), cos(108) and cos(144) degrees; the minimum is never reached."""
    settings = Optimizer(
        schedule="staircase", peak_learning_rate=1e-5, minimum_learning_rate=0, warmup_steps=4, warmup_start=1e-8
    )
    rates = [learning_rate(step, 30, settings, epochs=5) for step in range(30)]
    assert rates[0] == 1e-8 and rates[1] == pytest.approx(1e-8 + 0.25 * (1e-5 - 1e-8)) and rates[4:6] == [1e-5, 1e-5]
    for epoch, share in enumerate([0.90450850, 0.65450850, 0.34549150, 0.09549150], start=1):
        assert rates[6 * epoch : 6 * epoch + 6] == pytest.approx([share * 1e-5] * 6, rel=1e-7)
    above = settings.model_copy(update={"minimum_learning_rate": 1e-6})
    assert learning_rate(29, 30, above, epochs=5) == pytest.approx(1e-6 + 9e-6 * 0.09549150, rel=1e-7)


def test_a_staircase_whose_first_epoch_is_shorter_than_the_warmup_never_reaches_the_peak() -> None:
    settings = Optimizer(schedule="staircase", peak_learning_rate=1e-5, minimum_learning_rate=0, warmup_steps=100)
    assert [learning_rate(step, 4, settings, epochs=2) for step in range(4)] == pytest.approx([1e-7, 2e-7, 5e-6, 5e-6])
