"""Saving beside training: all ranks wait while rank 0 copies what is saved to its host's memory; a thread writes it."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.config import Recipe
from pipeline.distributed import collectives, process_group
from pipeline.distributed.stopwatch import STOPWATCH
from pipeline.training import checkpoint, engine_state
from pipeline.training.checkpoint import SaveError, State

log = logging.getLogger(__name__)


class Saver:
    """One checkpoint at a time: so rank 0's host holds one, of 12 bytes a trained parameter, while it is written.

    Every rank calls `begin` and `finish` at the same steps. The block's end waits for what is being written, also when
    an error ends it.
    """

    def __init__(self, engine: Any, recipe: Recipe) -> None:
        self._engine, self._recipe, self._writes = engine, recipe, process_group.rank() == 0
        self._thread = ThreadPoolExecutor(1, "saver")
        self._folder: Path | None = None  # begun, and not yet finished; the same on every rank
        self._written: Future[None] | None = None  # on rank 0

    @property
    def is_ready(self) -> bool:
        """Whether `finish` would not wait; on rank 0 alone."""
        return self._written is not None and self._written.done()

    def begin(self, state: State) -> None:
        """Copy weights and moments, and begin to write them, after the checkpoint before.

        A step that is saved already is not written again: if that were cut short, nothing whole would be left.
        """
        with STOPWATCH.measure("checkpoint"):
            self.finish()
            folder = checkpoint.folder_of(self._recipe.run.output, state.step)
            if collectives.any_rank(self._writes and (folder / checkpoint.COMPLETE).exists()):
                return
            weights, moments = engine_state.gather(self._engine, keep=self._writes)
            self._folder = folder
            if self._writes:
                self._written = self._thread.submit(checkpoint.write, weights, moments, self._recipe, state)

    def finish(self, must_succeed: bool = False) -> None:
        """Wait until what was begun is whole. Raises SaveError on every rank when it cannot be written, unless the
        recipe says to go on and a later save follows."""
        if self._folder is None:
            return
        with STOPWATCH.measure("checkpoint"):
            fault = self._written.exception() if self._written else None  # waits
            folder, self._folder, self._written = self._folder, None, None
            if not collectives.any_rank(fault is not None):
                log.info("saved %s", folder)
                return
        fault = fault or SaveError(f"checkpoint {folder}: rank 0 could not write it; see the output of rank 0")
        if must_succeed or self._recipe.faults.save_failure == "stop" or not isinstance(fault, SaveError):
            raise fault
        log.warning("%s; training continues (faults.save_failure)", fault)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if self._written and (fault := self._written.exception()):
            log.warning("%s", fault)  # beside the error that ends the run
