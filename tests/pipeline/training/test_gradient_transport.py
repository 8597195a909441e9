"""`run.gradient_transport: bf16` halves what gradients send, and the losses stay nearly those of fp32."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline.training import checkpoint
from pipeline.weights import native
from tests.support.counted_traffic import counted_traffic
from tests.support.gloo_ranks import run_on_ranks
from tests.support.tiny_runs import Write, lines_of, train_here

STEPS = 4


def train_and_count(arguments: list[str]) -> tuple[int, str, float]:
    """Exit code, errors, and the bytes that this rank sent."""
    with counted_traffic() as sent:
        code, _, errors = train_here(arguments)
    return code, errors, sum(sent.values())


def test_gradients_in_bf16_send_half_the_bytes_and_train_nearly_alike(folder: Path, write: Write) -> None:
    sent, losses = {}, {}
    for transport in ("fp32", "bf16"):
        run = {"gradient_transport": transport, "steps": STEPS}
        arguments = write(transport, batch={"global_size": 4, "micro_size": 2}, qformer={"dropout": 0.0}, run=run)
        for code, errors, counted in run_on_ranks(2, train_and_count, arguments):
            assert code == 0, errors
            sent[transport] = counted
        losses[transport] = [line["loss"] for line in lines_of(folder / transport)]
    weights = load_file(checkpoint.folder_of(folder / "fp32", STEPS) / native.FILE_NAME)
    elements = sum(tensor.numel() for tensor in weights.values())
    # An all-reduce on two ranks sends each gradient once: two bytes of four are saved.
    assert sent["fp32"] - sent["bf16"] == pytest.approx(2 * elements * STEPS, rel=0.01)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-3)
