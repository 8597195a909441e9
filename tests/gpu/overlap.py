"""Part 4: pinned batches, and the next batch's copy and encoder beside other work, on a stream of their own."""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.data.batch import Batch
from pipeline.training.ahead import Ahead
from tests.gpu import small_tasks
from tests.gpu.checks import Checks, wait_for

PICTURES, SIZE_PX = 105, 224
SLEEP_S = 0.05  # as long as a slow network takes
CYCLES_PER_S = 1.5e9  # of `_sleep`; only its order counts


class Encoder(nn.Module):
    """Products that take a while, then numbers that depend on every pixel."""

    def __init__(self, device: str, side: int) -> None:
        super().__init__()
        self.weight = torch.randn(side, side, device=device).mul_(side**-0.5).to(torch.bfloat16)

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        busy = self.weight
        for _ in range(10):
            busy = busy @ self.weight
        return pixels_B3SS.flatten(1).double().sum(dim=1) + 0 * busy.double().mean()


def run(checks: Checks) -> None:
    batch = big_batch(checks)
    with checks.guarded("pinned"):
        pinned(checks, batch)
    with checks.guarded("values"):
        equal_values(checks, batch)
    if checks.device == "cuda":
        with checks.guarded("copy beside work"):
            copy_beside_work(checks, batch)
        with checks.guarded("encoder beside the network"):
            encoder_beside_sleep(checks, batch)


def big_batch(checks: Checks) -> Batch:
    small = small_tasks.small_batch(1)
    pictures, size_px = (2, 32) if checks.tiny else (PICTURES, SIZE_PX)
    pixels = torch.randint(0, 256, (pictures, 3, size_px, size_px), dtype=torch.uint8)
    return Batch(pixels, torch.arange(pictures), small.context, small.target, 0)


def pinned(checks: Checks, batch: Batch) -> None:
    """As torch's loader pins what a worker has sent."""
    is_cuda = checks.device == "cuda"
    loader: Any = DataLoader([batch], batch_size=None, pin_memory=is_cuda)  # type: ignore[arg-type]
    [loaded] = list(loader)
    pins = [tensor.is_pinned() for tensor in loaded.tensors()] if is_cuda else [hasattr(batch, "pin_memory")]
    checks.is_true("every tensor of a loaded batch is pinned", all(pins), f"{sum(pins)} of {len(pins)}")


def equal_values(checks: Checks, batch: Batch, rounds: int = 20) -> None:
    """What comes out is what went in, though the memory of earlier batches is used again."""
    device = torch.device(checks.device)
    batches = [Batch((batch.pixels_B3SS + n), batch.image_ids_B, batch.context, batch.target, 0) for n in range(4)]
    wanted = [each.pixels_B3SS.flatten(1).double().sum(dim=1) for each in batches]
    if checks.device == "cuda":
        batches = [each.pin_memory() for each in batches]

    def source() -> Iterator[Batch]:
        for number in range(rounds):
            yield batches[number % 4]

    ahead, right = Ahead(source(), 1, device, Encoder(checks.device, 64 if checks.tiny else 4096)), 0
    for number, step in enumerate(ahead.steps()):
        taken = ahead.take(step[0])
        loss = torch.ones(4, device=device, requires_grad=True).sum()
        ahead.watch(loss)
        loss.backward()
        ahead.begin_after(step, 0)
        assert taken.frozen_BPI is not None
        right += int(torch.equal(taken.frozen_BPI.cpu(), wanted[number % 4]))
        del taken
    checks.report("batches that came whole", right, f"== {rounds}", right == rounds)


def copy_beside_work(checks: Checks, batch: Batch) -> None:
    """The copy ends long before the work does that was queued earlier."""
    weight = torch.randn(8192, 8192, device="cuda").to(torch.bfloat16)
    source, side = batch.pin_memory(), torch.cuda.Stream()
    begin, copied, worked = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    weight @ weight
    wait_for("cuda")
    begin.record()
    for _ in range(30):
        weight @ weight
    worked.record()
    side.wait_event(begin)
    with torch.cuda.stream(side):
        source.to("cuda")
        copied.record(side)
    wait_for("cuda")
    checks.at_most(
        "copy beside work, share of the work's time", begin.elapsed_time(copied) / begin.elapsed_time(worked), 0.5
    )


def encoder_beside_sleep(checks: Checks, batch: Batch) -> None:
    """A backward pass, then 50 ms in which the GPU waits, as for a network: the encoder runs in these."""
    encoder = Encoder("cuda", 8192)
    ahead = Ahead(repeat(batch.pin_memory(), 3), 1, torch.device("cuda"), encoder)
    steps, weight = ahead.steps(), torch.randn(512, 512, device="cuda", requires_grad=True)
    step = next(steps)
    ahead.take(step[0])
    alone = _elapsed(lambda: encoder(batch.pixels_B3SS.to("cuda")))
    asleep = _elapsed(lambda: torch.cuda._sleep(int(SLEEP_S * CYCLES_PER_S)))

    def together() -> None:
        loss = (weight @ weight).sum()
        ahead.watch(loss)
        loss.backward()
        torch.cuda._sleep(int(SLEEP_S * CYCLES_PER_S))
        ahead.begin_after(step, 0)
        ahead.take(next(steps)[0])  # the stream waits for both

    both = _elapsed(together)
    saved = (alone + asleep - both) / min(alone, asleep)
    checks.at_least("encoder beside a wait, share of the shorter one that is hidden", saved, 0.6)


def _elapsed(work: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wait_for("cuda")
    begin.record()
    work()
    end.record()
    wait_for("cuda")
    return float(begin.elapsed_time(end))
