"""CapFilt: write new captions for web images, and keep the captions that fit best.

A captioner writes ten captions for each image. A ranker scores them and the web caption, and the best two are kept.
Samples with human captions are copied unchanged. Several workers may share the output folder, one shard at a time.
Finished shards are skipped: run the same command again to continue. With --reselect, finished shards get another
--top-k or --min-score from their side tables, without the models.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from data_prep.captioning.capfilt_flags import parse
from data_prep.captioning.capfilt_plan import Plan, Selection
from data_prep.captioning.captioned_shard import Candidates
from data_prep.captioning.captioner import Captioner, SamplingSettings, load_captioner
from data_prep.captioning.device import choose_device
from data_prep.captioning.ranker import Ranker, load_ranker
from data_prep.captioning.shared_work import caption_shards
from data_prep.captioning.side_table import read_candidates
from data_prep.captioning.weights_folder import folder_digest, local_folder
from data_prep.shards.receipts import Receipt, finished_shards, read_receipt
from data_prep.shards.tar_files import Sample
from pipeline.command_line import finish, print_settings
from pipeline.progress_line import ProgressLine


class Models:
    """Makes candidates with the two models. They are loaded when the first shard needs them: a run that only finds
    finished shards, or human captions, loads nothing."""

    def __init__(self, options: argparse.Namespace, sampling: SamplingSettings) -> None:
        self.options, self.sampling = options, sampling
        self.loaded: tuple[Captioner, Ranker] | None = None

    def __call__(self, target: Path, samples: list[Sample]) -> Candidates:  # noqa: ARG002 - reselection needs the target
        from data_prep.captioning.candidates import make_candidates

        if not samples:
            return []
        if self.loaded is None:
            captioner = load_captioner(self.options.captioner, self.sampling, self.options.device)
            self.loaded = captioner, load_ranker(self.options.ranker, self.options.device)
        threads = self.options.decode_threads
        return make_candidates(samples, *self.loaded, batch_size=self.options.batch_size, num_threads=threads)


def from_side_table(target: Path, samples: list[Sample], input_sha256: str) -> Candidates:
    """The candidates in the side table of an earlier run. A sample without any is one that could not be decoded.

    Raises ValueError when such a sample can be decoded: then the earlier run left it out because of its --drops.
    """
    from data_prep.captioning.candidates import decode

    candidates, _ = read_candidates(target, input_sha256)
    for sample in samples:
        if sample.key not in candidates and decode(sample.jpeg) is not None:
            raise ValueError(
                f"{target}: has no candidates for sample {sample.key}, which an earlier --drops left out; "
                "caption the shard again with --captioner and --ranker"
            )
    return [(sample, candidates.get(sample.key)) for sample in samples]


def input_shards(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """(the finished shards of --input that belong to this task, all the others).

    This task takes every task-count-th shard from task-index on. It helps with the others when it has none left.
    """
    if not options.input.is_dir():
        raise ValueError(f"--input {options.input}: is not a folder; name the output folder of data_prep.download")
    if options.input.resolve() == options.output.resolve():
        raise ValueError(
            f"--output {options.output}: is also the --input folder; name another folder for captioned shards"
        )
    if not 0 <= options.task_index < options.task_count:
        raise ValueError(
            f"--task-index {options.task_index}: must be at least 0 and below --task-count {options.task_count}"
        )
    tars = finished_shards(options.input)
    if not tars:
        raise ValueError(
            f"--input {options.input}: has no finished shard (a tar with its receipt); run data_prep.download first"
        )
    mine = tars[options.task_index :: options.task_count]
    return mine, [tar for tar in tars if tar not in set(mine)]


def caption(options: argparse.Namespace, selection: Selection) -> list[Receipt]:
    """Caption this task's shards with the models; returns the receipts of the shards that were made now."""
    names = {each.name for each in fields(SamplingSettings)}
    sampling = SamplingSettings(**{name: value for name, value in vars(options).items() if name in names})
    tars, others = input_shards(options)
    for name in ("captioner", "ranker"):
        setattr(options, name, local_folder(vars(options)[name], f"--{name}"))
    # A finished shard is recognised by these digests, so that other weights under the same name make it again.
    digests = {name: folder_digest(vars(options)[name], f"--{name}") for name in ("captioner", "ranker")}
    making = {"sampling": asdict(sampling), "models": digests}
    plan = Plan(options.output, making, selection, options.drops)
    return caption_shards(tars, plan, Models(options, sampling), options.lease_s, others)


def reselect(options: argparse.Namespace, selection: Selection) -> list[Receipt]:
    """Select again in this task's captioned shards; returns the receipts of the shards that were made now."""
    receipts: list[Receipt] = []
    tars = input_shards(options)[0]
    for tar in ProgressLine("selecting", len(tars), "shards").follow(tars):
        input_sha256 = read_receipt(tar).tar_sha256
        # Each side table says how its candidates were made. With these settings the hash is that of a run with the
        # models, so both kinds of run recognise each other's finished shards.
        _, making = read_candidates(options.output / tar.name, input_sha256)
        plan = Plan(options.output, making, selection, options.drops)
        make = partial(from_side_table, input_sha256=input_sha256)
        receipts += caption_shards([tar], plan, make, options.lease_s, shown=False)
    return receipts


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__)

    def work() -> int:
        if not options.reselect:
            options.device = choose_device(options.device)
        print_settings(options)
        selection = Selection(options.top_k, options.min_score)
        started = time.monotonic()
        receipts = reselect(options, selection) if options.reselect else caption(options, selection)
        print(summary(receipts, time.monotonic() - started))
        print(options.output)
        return 0

    return finish(work)


def summary(receipts: Sequence[Receipt], seconds: float) -> str:
    dropped = Counter[str]()
    for receipt in receipts:
        dropped.update(receipt.dropped)
    images = sum(receipt.samples for receipt in receipts) + dropped.total()
    lost = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items())) or "none"
    captions = sum(receipt.captions for receipt in receipts)
    return (
        f"{len(receipts)} shards made now: {images} images, {captions} captions, dropped: {lost}; "
        f"{seconds:.1f} s, {images / max(seconds, 1e-9):.1f} images/s"
    )


if __name__ == "__main__":
    sys.exit(main())
