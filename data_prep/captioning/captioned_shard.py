"""Makes one captioned shard of a raw one: its candidates are judged, and the best are kept."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.captioning.capfilt_plan import Plan
from data_prep.captioning.selection import Candidate, Verdict, select
from data_prep.captioning.side_table import write_side_table
from data_prep.shards import tar_files
from data_prep.shards.receipts import CAPTIONED, Receipt, read_receipt, write_receipt
from data_prep.shards.tar_files import Sample
from pipeline.files import sha256_of

Candidates = Iterable[tuple[Sample, list[Candidate] | None]]
"""Samples with their candidates; None for a picture that cannot be decoded."""
MakeCandidates = Callable[[Path, list[Sample]], Candidates]
"""(the tar to be written, the web samples) -> their candidates."""


class DamagedInputError(ValueError):
    """A shard to be captioned is not what its receipt says; the others can still be done."""


def read_input(tar: Path) -> list[Sample]:
    """The samples of a raw shard, every byte checked. Raises DamagedInputError, naming the tar."""
    try:
        receipt = read_receipt(tar)
        if receipt.stage == CAPTIONED:
            raise ValueError(f"{tar}: is captioned already; --input is the folder that data_prep.download wrote")
        samples = list(tar_files.read_samples(tar))
        if sha256_of(tar) != receipt.tar_sha256:
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
    input_sha256 = read_receipt(tar).tar_sha256
    write_side_table(target, verdicts, plan.making, input_sha256)
    receipt = Receipt(
        stage=CAPTIONED,
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
    write_receipt(target, receipt)
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
