"""Captioned shards: from a raw shard and a source of candidates to a finished one, shared between workers by leases."""

import hashlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.captioning.selection import Candidate, Verdict, select
from data_prep.captioning.side_table import write_side_table
from data_prep.shards import tar_files
from data_prep.shards.drop_lists import digest_of, read_drop_list
from data_prep.shards.leases import Leases
from data_prep.shards.tar_files import Receipt, Sample

STAGE = "capfilt"
RULES = "capfilt/2"
"""Changes when the same settings would give other captions than before, so that old shards are made again."""
POLL_S = 1.0
"""How often a worker without work looks whether the shards of the others are finished or left behind."""

Candidates = Iterable[tuple[Sample, list[Candidate] | None]]
"""Samples with their candidates; None for a picture that cannot be decoded."""
MakeCandidates = Callable[[Path, list[Sample]], Candidates]
"""(the tar to be written, the web samples) -> their candidates."""


@dataclass(frozen=True)
class Selection:
    """Which of the candidates are kept."""

    top_k: int = 2
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k}: must be at least 1")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ValueError(f"--min-score {self.min_score}: must be a finite number")


@dataclass(frozen=True)
class Plan:
    """What is to be made of each shard. `making` holds the sampling settings and the digests of both models; `drops` is
    the folder of the drop lists, if there are any."""

    output: Path
    making: dict[str, Any]
    selection: Selection
    drops: Path | None = None

    def dropped(self, tar: Path) -> dict[str, str]:
        """Key -> reason of the samples of a shard that are left out. Raises ValueError when its list is missing."""
        return read_drop_list(self.drops, tar, tar_files.read_receipt(tar).tar_sha256) if self.drops else {}

    def config_hash(self, tar: Path) -> str:
        content = {"rules": RULES, "making": self.making, "selection": asdict(self.selection)}
        if (drops := digest_of(self.dropped(tar))) is not None:
            content["drops"] = drops
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def target(self, tar: Path) -> Path:
        return self.output / tar.name

    def finished(self, tar: Path) -> bool:
        """Whether the output holds this shard, made from these bytes with these settings."""
        target, given = self.target(tar), tar_files.read_receipt(tar)
        try:
            made = tar_files.read_receipt(target)
        except ValueError:
            return False
        return target.is_file() and made.same_work(STAGE, given.tar_sha256, self.config_hash(tar))


class DamagedInputError(ValueError):
    """A shard to be captioned is not what its receipt says; the others can still be done."""


def read_input(tar: Path) -> list[Sample]:
    """The samples of a raw shard, every byte checked. Raises DamagedInputError, naming the tar."""
    try:
        receipt = tar_files.read_receipt(tar)
        if receipt.stage == STAGE:
            raise ValueError(f"{tar}: is captioned already; --input is the folder that data_prep.download wrote")
        samples = list(tar_files.read_samples(tar))
        if tar_files.sha256_of(tar) != receipt.tar_sha256:
            raise ValueError(f"{tar}: its sha256 differs from its receipt's; the tar is damaged")
    except ValueError as error:
        raise DamagedInputError(str(error)) from error
    return samples


def caption_shard(tar: Path, plan: Plan, make: MakeCandidates, still_ours: Callable[[], bool]) -> Receipt | None:
    """Write one captioned shard, its side table, and last its receipt, which is returned.

    None when `still_ours` denies it at the end: another worker has taken the shard over. Raises DamagedInputError.
    """
    samples = read_input(tar)
    drops = plan.dropped(tar)
    if strangers := drops.keys() - {sample.key for sample in samples}:
        raise ValueError(f"--drops {plan.drops}: its list for {tar} names {min(strangers)}, which is no sample of it")
    wanted = [sample for sample in samples if sample.key not in drops]
    web = [sample for sample in wanted if "human" not in sample.record["sources"]]
    target, dropped = plan.target(tar), Counter(drops.values())
    verdicts: dict[str, list[Verdict]] = {}
    for sample, candidates in make(target, web):
        if candidates is None:
            dropped["undecodable_picture"] += 1
            continue
        verdicts[sample.key] = select(candidates, plan.selection.top_k, plan.selection.min_score)
        if all(verdict.rank is None for verdict in verdicts[sample.key]):
            dropped["no_caption_survived"] += 1
    if not still_ours():
        return None
    totals = tar_files.write_shard(target, _captioned(wanted, verdicts))
    input_sha256 = tar_files.read_receipt(tar).tar_sha256
    write_side_table(target, verdicts, plan.making, input_sha256)
    receipt = Receipt(
        stage=STAGE,
        input_sha256=input_sha256,
        config_hash=plan.config_hash(tar),
        tar_sha256=totals.sha256,
        bytes=totals.bytes,
        samples=totals.samples,
        captions=totals.captions,
        seed=plan.making["sampling"]["seed"],
        models=plan.making["models"],
        dropped=dict(sorted(dropped.items())),
    )
    assert totals.samples + dropped.total() == len(samples)
    tar_files.write_receipt(target, receipt)
    return receipt


def _captioned(samples: list[Sample], verdicts: dict[str, list[Verdict]]) -> Iterable[Sample]:
    """The samples that stay, in order: human ones as they came, the others with the captions that were kept."""
    for sample in samples:
        if "human" in sample.record["sources"]:
            yield sample
            continue
        kept = [verdict for verdict in verdicts.get(sample.key, []) if verdict.rank is not None]
        best_first = [verdict.candidate for verdict in sorted(kept, key=lambda each: each.rank or 0)]
        if best_first:
            chosen = {
                "captions": [each.caption for each in best_first],
                "scores": [each.score for each in best_first],
                "sources": [each.source for each in best_first],
            }
            yield Sample(sample.key, sample.jpeg, sample.record | chosen)


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
        tar_files.remove_partials(plan.target(tar))
        return caption_shard(tar, plan, make, lease.held)
