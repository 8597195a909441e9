"""Shares the captioning of many shards between workers by leases, and ends when all shards are finished."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from data_prep.captioning.capfilt_plan import Plan
from data_prep.captioning.captioned_shard import DamagedInputError, MakeCandidates, caption_shard
from data_prep.shards.leases import Leases
from data_prep.shards.receipts import Receipt
from pipeline.files import remove_partials

POLL_S = 1.0
"""Seconds after which a worker without work looks again whether the shards of the others are finished or abandoned."""


def caption_shards(
    tars: Sequence[Path], plan: Plan, make: MakeCandidates, ttl_s: float, others: Sequence[Path] = ()
) -> list[Receipt]:
    """Finish every shard, and share the work through leases; returns the receipts of those that this worker made.

    Ends when all shards are finished, by any worker. Then it also makes those of `others` that nobody works on: other
    tasks may be slow or killed. Raises ValueError at the end when shards could not be read.
    """
    leases, pending, made, failures = Leases(plan.output, ttl_s), list(tars), list[Receipt](), list[str]()
    with tqdm(total=len(tars), desc="captioning", unit="shard", disable=not sys.stderr.isatty()) as bar:
        while pending:
            unfinished = []
            for tar in pending:
                try:
                    receipt = _caption_if_free(tar, plan, make, leases)
                except DamagedInputError as error:
                    failures.append(str(error))
                    continue
                if receipt is not None:
                    made.append(receipt)
                if plan.finished(tar):
                    bar.update()
                else:
                    unfinished.append(tar)
            pending = unfinished
            if pending:
                time.sleep(POLL_S)
    made += _help(others, plan, make, leases)
    if failures:
        raise ValueError(f"{len(failures)} of {len(tars)} shards cannot be captioned; the first: {failures[0]}")
    return made


def _help(tars: Sequence[Path], plan: Plan, make: MakeCandidates, leases: Leases) -> list[Receipt]:
    """Caption those shards of other tasks that nobody works on, the last one first, because they reach it last. A
    damaged shard is not an error here: its own task reports it."""
    made = []
    for tar in reversed(tars):
        with suppress(DamagedInputError):
            if (receipt := _caption_if_free(tar, plan, make, leases)) is not None:
                made.append(receipt)
    return made


def _caption_if_free(tar: Path, plan: Plan, make: MakeCandidates, leases: Leases) -> Receipt | None:
    """The receipt when this worker made the shard; None when it is already finished, or another works on it."""
    if plan.finished(tar):
        leases.clear(tar.stem)
        return None
    lease = leases.take(tar.stem)
    if lease is None:
        return None
    with lease:
        if plan.finished(tar):  # by another worker, after the first check and before this lease
            return None
        remove_partials(plan.target(tar))
        return caption_shard(tar, plan, make, lease.held)
