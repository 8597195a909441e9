"""Makes one captioned shard from a raw shard: it selects the best candidate captions of each image.

The order of writing decides what a kill can leave: first the tar, then the side table, the receipt last. A shard
without a receipt is made again.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.captioning.capfilt_plan import Plan
from data_prep.captioning.selection import Candidate, Verdict, select
from data_prep.captioning.side_table import write_side_table
from data_prep.shards import tar_files
from data_prep.shards.receipts import CAPTIONED, Receipt, read_receipt, write_receipt
from data_prep.shards.sample_json import questions_of
from data_prep.shards.tar_files import Sample
from pipeline.files import sha256_of

Candidates = Iterable[tuple[Sample, list[Candidate] | None]]
"""Samples with their candidates; None for a picture that cannot be decoded."""
MakeCandidates = Callable[[Path, list[Sample]], Candidates]
"""(the tar to be written, the web samples) -> their candidates."""


class DamagedInputError(ValueError):
    """An input shard is damaged, or differs from its receipt; the other shards can still be captioned."""


def read_input(tar: Path) -> list[Sample]:
    """The samples of a raw shard; every byte is checked. Raises DamagedInputError, with the name of the tar."""
    try:
        receipt = read_receipt(tar)
        if receipt.stage == CAPTIONED:
            raise ValueError(f"{tar}: is captioned already; give --input the folder that data_prep.download wrote")
        samples = list(tar_files.read_samples(tar))
        if sha256_of(tar) != receipt.tar_sha256:
            raise ValueError(f"{tar}: its sha256 differs from its receipt; {tar_files.REMEDY}")
    except ValueError as error:
        raise DamagedInputError(str(error)) from error
    return samples


def caption_shard(tar: Path, plan: Plan, make: MakeCandidates, still_ours: Callable[[], bool]) -> Receipt | None:
    """Write one captioned shard, its side table, and last its receipt, which is returned.

    None when `still_ours` is False before writing: another worker has taken the shard over. Raises DamagedInputError.
    """
    samples = read_input(tar)
    drops = plan.dropped(tar)
    if unknown := drops.keys() - {sample.key for sample in samples}:
        raise ValueError(
            f"--drops {plan.drops}: its list for {tar} names {min(unknown)}, which is not a sample of this shard; "
            "run data_prep.duplicates again"
        )
    wanted = [sample for sample in samples if sample.key not in drops]
    web = [sample for sample in wanted if _is_web(sample)]
    target, dropped, dropped_questions = plan.target(tar), Counter(drops.values()), Counter[str]()
    for sample in samples:
        if sample.key in drops and (questions := len(questions_of(sample.record))):
            dropped_questions[drops[sample.key]] += questions
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
    raw = read_receipt(tar)
    write_side_table(target, verdicts, plan.making, raw.tar_sha256)
    receipt = Receipt(
        stage=CAPTIONED,
        input_sha256=raw.tar_sha256,
        config_hash=plan.config_hash(tar),
        tar_sha256=totals.sha256,
        bytes=totals.bytes,
        samples=totals.samples,
        captions=totals.captions,
        seed=plan.making["sampling"]["seed"],
        models=plan.making["models"],
        dropped=dict(sorted(dropped.items())),
        questions=totals.questions,
        dropped_questions=dict(sorted(dropped_questions.items())),
        question_sets=totals.question_sets,
        cleaned_of=raw.cleaned_of,
    )
    assert totals.samples + dropped.total() == len(samples)
    write_receipt(target, receipt)
    return receipt


def _is_web(sample: Sample) -> bool:
    """Whether the sample needs captions: human captions and questions are copied unchanged."""
    return "human" not in sample.record["sources"] and not questions_of(sample.record)


def _captioned(samples: list[Sample], verdicts: dict[str, list[Verdict]]) -> Iterable[Sample]:
    """The samples that stay, in order: those with human captions or questions unchanged, the others with their selected
    captions."""
    for sample in samples:
        if not _is_web(sample):
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
