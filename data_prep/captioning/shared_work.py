"""Shares the captioning of many shards between workers by leases, and ends when all shards are finished."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data_prep.captioning.capfilt_plan import Plan
from data_prep.captioning.captioned_shard import Candidates, DamagedInputError, MakeCandidates, caption_shard
from data_prep.shards.leases import Leases
from data_prep.shards.receipts import Receipt, read_receipt
from data_prep.shards.tar_files import Sample
from pipeline.files import remove_partials
from pipeline.progress_line import ProgressLine

POLL_S = 1.0
"""Seconds after which a worker without work looks again whether the shards of the others are finished or abandoned."""


def caption_shards(
    tars: Sequence[Path],
    plan: Plan,
    make: MakeCandidates,
    ttl_s: float,
    others: Sequence[Path] = (),
    *,
    shown: bool = True,
) -> list[Receipt]:
    """Finish every shard, and share the work through leases; returns the receipts of those that this worker made.

    Ends when all shards are finished, by any worker. Then it also makes those of `others` that nobody works on: other
    tasks may be slow or killed. Raises ValueError at the end when shards could not be read.
    """
    leases, pending, made, failures = Leases(plan.output, ttl_s), list(tars), list[Receipt](), list[str]()
    sizes = {tar: _samples_of(tar) for tar in tars}
    with ProgressLine("captioning", sum(sizes.values()), "pictures", shown=shown) as line:
        while pending:
            unfinished = []
            for tar in pending:
                before = line.done
                try:
                    receipt = _caption_if_free(tar, plan, _counted(make, line), leases)
                except DamagedInputError as error:
                    failures.append(str(error))
                    continue
                if receipt is not None:
                    made.append(receipt)
                wanted = before
                if plan.finished(tar):
                    wanted += sizes[tar]
                else:
                    unfinished.append(tar)
                (line.advance if receipt else line.skip)(wanted - line.done)
            pending = unfinished
            if pending:
                time.sleep(POLL_S)
    made += _help(others, plan, make, leases)
    if failures:
        raise ValueError(f"{len(failures)} of {len(tars)} shards cannot be captioned; the first: {failures[0]}")
    return made


def _samples_of(tar: Path) -> int:
    """Of a shard; 0 where its receipt is damaged, which captioning reports."""
    try:
        return read_receipt(tar).samples
    except ValueError:
        return 0


def _counted(make: MakeCandidates, line: ProgressLine) -> MakeCandidates:
    def made(target: Path, samples: list[Sample]) -> Candidates:
        for each in make(target, samples):
            yield each
            line.advance()

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
