"""Shares the captioning of many shards between workers, by leases; ends when all of them are finished."""

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
"""How often a worker without work looks whether the other workers' shards are finished or abandoned."""


def caption_shards(
    tars: Sequence[Path], plan: Plan, make: MakeCandidates, ttl_s: float, others: Sequence[Path] = ()
) -> list[Receipt]:
    """Finish every shard, sharing the work through leases; returns the receipts of those that this worker made.

    Ends when all are finished, by whichever worker, and of `others` none is left that nobody is at: those of a worker
    that is slow, or was killed. Raises ValueError at the end when shards could not be read.
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
        raise ValueError(f"{len(failures)} of {len(tars)} shards cannot be captioned, the first: {failures[0]}")
    return made


def _help(tars: Sequence[Path], plan: Plan, make: MakeCandidates, leases: Leases) -> list[Receipt]:
    """Caption what is free of other workers' shards, from the last on, which they come to last; theirs to report a
    damaged one."""
    made = []
    for tar in reversed(tars):
        with suppress(DamagedInputError):
            if (receipt := _caption_if_free(tar, plan, make, leases)) is not None:
                made.append(receipt)
    return made


def _caption_if_free(tar: Path, plan: Plan, make: MakeCandidates, leases: Leases) -> Receipt | None:
    """The receipt when this worker has made the shard; None when it is finished already, or another is at it."""
    if plan.finished(tar):
        leases.clear(tar.stem)
        return None
    lease = leases.take(tar.stem)
    if lease is None:
        return None
    with lease:
        if plan.finished(tar):  # by another worker, between the look and the lease
            return None
        remove_partials(plan.target(tar))
        return caption_shard(tar, plan, make, lease.held)
