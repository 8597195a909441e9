"""CapFilt: give web images captions that fit them.

A captioner writes ten captions an image, a ranker scores them with the web caption, and the best two are kept. Samples
with human captions are copied through. Work goes shard by shard: any number of workers may share the output folder, a
finished shard is skipped, and a killed run goes on where it stopped. With --reselect another --top-k or --min-score is
applied to finished shards from their side tables, without the models.
"""

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

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
from pipeline.command_line import Parser, finish, positive, print_settings


class Models:
    """Makes candidates with the two models, which are loaded when the first shard needs them."""

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
    """The candidates that an earlier run left beside its shard; a sample without any could not be decoded.

    Raises ValueError when it can be: then the earlier run left it out.
    """
    from data_prep.captioning.candidates import decode

    candidates, _ = read_candidates(target, input_sha256)
    for sample in samples:
        if sample.key not in candidates and decode(sample.jpeg) is not None:
            raise ValueError(f"{target}: has no candidates for {sample.key}, which --drops left out; caption it again")
    return [(sample, candidates.get(sample.key)) for sample in samples]


def input_shards(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """The finished shards of --input that fall to this task, each task-count-th from task-index on, and the others."""
    if not options.input.is_dir():
        raise ValueError(f"--input {options.input}: no such folder of shards")
    if options.input.resolve() == options.output.resolve():
        raise ValueError(
            f"--output {options.output}: is the --input folder; captioned shards need a folder of their own"
        )
    if not 0 <= options.task_index < options.task_count:
        raise ValueError(f"--task-index {options.task_index}: must lie in 0 .. --task-count {options.task_count} - 1")
    tars = finished_shards(options.input)
    if not tars:
        raise ValueError(
            f"--input {options.input}: no finished shard (a tar with its receipt); run data_prep.download first"
        )
    mine = tars[options.task_index :: options.task_count]
    return mine, [tar for tar in tars if tar not in set(mine)]


def caption(options: argparse.Namespace, selection: Selection) -> list[Receipt]:
    """Caption this task's shards with the models; returns the receipts of those made now."""
    names = {each.name for each in fields(SamplingSettings)}
    sampling = SamplingSettings(**{name: value for name, value in vars(options).items() if name in names})
    tars, others = input_shards(options)
    for name in ("captioner", "ranker"):
        setattr(options, name, local_folder(vars(options)[name], f"--{name}"))
    digests = {name: folder_digest(vars(options)[name], f"--{name}") for name in ("captioner", "ranker")}
    making = {"sampling": asdict(sampling), "models": digests}
    plan = Plan(options.output, making, selection, options.drops)
    return caption_shards(tars, plan, Models(options, sampling), options.lease_s, others)


def reselect(options: argparse.Namespace, selection: Selection) -> list[Receipt]:
    """Select again in this task's shards that were captioned before; returns the receipts of those made now."""
    receipts: list[Receipt] = []
    for tar in input_shards(options)[0]:
        input_sha256 = read_receipt(tar).tar_sha256
        _, making = read_candidates(options.output / tar.name, input_sha256)
        plan = Plan(options.output, making, selection, options.drops)
        make = partial(from_side_table, input_sha256=input_sha256)
        receipts += caption_shards([tar], plan, make, options.lease_s)
    return receipts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    default = SamplingSettings()
    parser = Parser(prog="python -m data_prep.capfilt", description=__doc__)
    parser.add_argument("--input", metavar="DIR", type=Path, required=True, help="raw shards, from data_prep.download")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="captioned shards; workers may share it"
    )
    parser.add_argument(
        "--captioner", metavar="W", type=Path, help="folder (or hub id) of a transformers BlipForConditionalGeneration"
    )
    parser.add_argument("--ranker", metavar="W", type=Path, help="folder (or hub id) of a transformers CLIPModel")
    parser.add_argument("--drops", metavar="DROPS", type=Path, help="leave out what data_prep.duplicates lists there")
    parser.add_argument("--task-index", metavar="I", type=int, default=0, help="this task of a job array")
    parser.add_argument("--task-count", metavar="N", type=positive, default=1, help="tasks of the job array")
    parser.add_argument("--device", default="auto", help="cpu, cuda (this rank's), cuda:N, or auto")
    parser.add_argument(
        "--batch-size", type=positive, default=32, help="images captioned at once, at most 64; no effect on the result"
    )
    parser.add_argument("--decode-threads", type=positive, default=min(8, len(os.sched_getaffinity(0))))
    parser.add_argument("--prompt", default=default.prompt)
    parser.add_argument(
        "--num-captions", type=positive, default=default.num_captions, help="synthetic captions an image"
    )
    parser.add_argument("--top-p", type=float, default=default.top_p)
    parser.add_argument(
        "--min-length", type=int, default=default.min_length, help="in tokens, with start token and prompt"
    )
    parser.add_argument(
        "--max-length", type=int, default=default.max_length, help="in tokens, with start token and prompt"
    )
    parser.add_argument("--repetition-penalty", type=float, default=default.repetition_penalty)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--top-k", type=positive, default=Selection.top_k, help="captions kept an image")
    parser.add_argument("--min-score", type=float, help="drop captions whose cosine with the image is lower")
    parser.add_argument("--reselect", action="store_true", help="select again from the side tables, without the models")
    parser.add_argument(
        "--lease-s", type=float, default=120.0, help="a worker unheard of for so long has lost its shard"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    if not options.reselect and not (options.captioner and options.ranker):
        parser.error("--captioner and --ranker are required, unless --reselect is given")
    if not 0 < options.lease_s < math.inf:
        parser.error(f"--lease-s {options.lease_s}: must be above 0 and finite")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)

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
