"""The next micro batch, one ahead: loaded, copied to the device and through the image encoder, if that is frozen.

None of it depends on the weights in training. On a GPU it runs on a stream of its own, while gradients are averaged and
weights updated and sent: the time of the network is hidden behind the encoder.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.batch import Batch
from pipeline.distributed.stopwatch import STOPWATCH


class Ahead:
    """The micro batches of each step, and each of them on the device, with the tokens of a frozen encoder."""

    def __init__(
        self, batches: Iterable[Batch], accumulation: int, device: torch.device, vision: nn.Module | None
    ) -> None:
        self._source, self._accumulation = iter(batches), accumulation
        self._device, self._vision = device, vision
        self._next: list[Batch] | None = None
        self._error: Exception | None = None
        self._begun: tuple[Batch, Batch] | None = None  # on the host, and on the device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._may_begin: Any = None

    def steps(self) -> Iterator[list[Batch]]:
        """The micro batches of each step, on the host, until the data ends."""
        while True:
            self._load()
            if self._error:
                raise self._error
            step, self._next = self._next or [], None
            if len(step) < self._accumulation:
                return
            yield step

    def _load(self) -> None:
        """The next step's micro batches, unless they are loaded. An error waits until they are asked for."""
        if self._next is not None or self._error:
            return
        try:
            with STOPWATCH.measure("data"):
                self._next = list(islice(self._source, self._accumulation))
        except Exception as error:  # whatever a loader raises
            self._error = error

    def take(self, batch: Batch) -> Batch:
        """This micro batch on the device."""
        if self._begun is None or self._begun[0] is not batch:
            self._begin(batch)
        assert self._begun is not None
        (_, taken), self._begun = self._begun, None
        if self._stream:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in taken.tensors():
                tensor.record_stream(current)
        return taken

    def watch(self, loss: Tensor) -> None:
        """The next micro batch may begin when the backward pass of this loss has computed its last gradient: before
        gradients are averaged."""
        if self._stream:
            loss.register_hook(lambda _gradient: _call_after_backward(self._mark))  # type: ignore[no-untyped-call]

    def _mark(self) -> None:
        self._may_begin = torch.cuda.current_stream(self._device).record_event()

    def begin_after(self, step: list[Batch], part: int) -> None:
        """Begin with the micro batch after this part of a step: the next part, or the first of the next step."""
        if part + 1 < len(step):
            self._begin(step[part + 1])
            return
        self._load()
        if self._next and len(self._next) == self._accumulation:
            self._begin(self._next[0])

    def _begin(self, batch: Batch) -> None:
        if self._stream and self._may_begin:
            self._stream.wait_event(self._may_begin)
            self._may_begin = None
        with torch.cuda.stream(self._stream):  # without a GPU, nothing
            moved = batch.to(str(self._device))
            frozen_BPI = self._vision(moved.pixels_B3SS) if self._vision else None
            self._begun = batch, replace(moved, frozen_BPI=frozen_BPI)


def _call_after_backward(function: Any) -> None:
    """From within a backward pass: call a function when it has ended."""
    torch.autograd.Variable._execution_engine.queue_callback(function)  # type: ignore[attr-defined]
