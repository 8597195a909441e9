"""Divide a manifest in two: NAME.train.json, and NAME.validation.json of held-out pictures.

All copies of a picture are on one side, and near copies too: same sha256, or perceptual hashes in which at most 4 of 64
bits differ, also through a chain of others. No tar is written: each of the two manifests lists a part of the samples of
the same tars. A picture's side depends on its bytes and the seed, not on the order of the shards. Perceptual hashes
come from the ledgers beside the tars. Captioned shards have none: name the raw folders with --ledgers.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command_line import Parser, finish, print_settings
from pipeline.progress_line import ProgressLine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.data.manifest import Manifest, Shard

TRAIN, VALIDATION = "train", "validation"
BITS_APART = 4


def split(
    path: Path, share: float, seed: int, ledgers: Sequence[Path] = (), near: bool = True, workers: int = 1
) -> tuple[list[Path], int]:
    """Write both manifests; returns their paths, and how many pictures are in training because their group is large.

    Raises ValueError, with the file, when a picture's perceptual hash is in no ledger, or a side has no sample.
    """
    import numpy as np

    from data_prep.copies.picture_hashes import known_phashes
    from data_prep.copies.sides import sides
    from data_prep.shards.ledger import ledger_path
    from data_prep.shards.processes import map_in_order
    from data_prep.shards.receipts import finished_shards
    from pipeline.data.manifest import Manifest, load_manifest

    manifest = load_manifest(path)
    alone = [Manifest(manifest.root, (shard,)) for shard in manifest.shards]
    parts = list(ProgressLine("reading", len(alone), "shards").follow(map_in_order(_content, alone, workers)))
    content = np.concatenate(parts)
    if near:
        for folder in ledgers:
            if not folder.is_dir() or not finished_shards(folder):
                raise ValueError(f"--ledgers {folder}: has no finished shard (a tar with its receipt); name a folder "
                                 "of data_prep.download")  # fmt: skip
        beside = [manifest.shard_path(shard) for shard in manifest.shards]
        told = [tar for tar in beside if ledger_path(tar).is_file()]
        phash, has_phash = known_phashes([*told, *(tar for each in ledgers for tar in finished_shards(each))], content)
    else:
        phash, has_phash = np.zeros(len(content), np.uint64), np.zeros(len(content), np.bool_)
    found = sides(content, phash, has_phash, BITS_APART, share, seed)
    starts = np.cumsum([len(part) for part in parts])[:-1]
    held_out = np.split(found.held_out, starts)
    for name, chosen in ((TRAIN, ~found.held_out), (VALIDATION, found.held_out)):
        if not chosen.any():
            raise ValueError(f"--share {share}: no picture of {path} would be in the part {name}; give another share")
    written = [
        _write(manifest, path.with_suffix(f".{name}.json"), [chosen == (name == VALIDATION) for chosen in held_out])
        for name in (TRAIN, VALIDATION)
    ]
    return written, found.in_large_groups


def _content(manifest: "Manifest") -> "NDArray[np.uint64]":
    """64 bits of the sha256 of each picture of a manifest's one shard."""
    from data_prep.shards.offsets import checked_offsets
    from data_prep.shards.tar_files import content_hashes

    [shard] = manifest.shards
    return content_hashes(manifest.shard_path(shard), checked_offsets(manifest, shard))


def _write(manifest: "Manifest", path: Path, chosen: "Sequence[NDArray[np.bool_]]") -> Path:
    """Write one of the two manifests, with the chosen samples of each shard."""
    from data_prep.shards.offset_files import remove_unlisted
    from pipeline.data.manifest import manifest_json
    from pipeline.files import remove_partials, replace_file

    tables = path.with_suffix(".index")
    write = partial(_part, manifest, tables)
    shards = [write(shard, rows) for shard, rows in zip(manifest.shards, chosen, strict=True) if rows.any()]
    replace_file(path, manifest_json(shards).encode())
    remove_unlisted(tables, shards)
    remove_partials(path)
    return path


def _part(manifest: "Manifest", tables: Path, shard: "Shard", rows: "NDArray[np.bool_]") -> "Shard":
    """A shard with only these of its samples, and its offset table written."""
    from data_prep.shards.offset_files import DIGITS, table_bytes, table_name, write_table
    from pipeline.data.manifest import COUNTS, PLACES

    tar = manifest.shard_path(shard)
    manifest.counts(shard)  # raises where an earlier version wrote the table
    table = manifest.table(shard)[rows]
    name = table_name(tar, shard.sha256)
    if rows.all():
        return replace(shard, index=write_table(tables / name, table)[0])
    _, sha256 = table_bytes(table)
    index, _ = write_table(tables / name.replace(".npy", f"-{sha256[:DIGITS]}.npy"), table)
    captions, questions = (int(number) for number in table[:, PLACES:COUNTS].sum(axis=0))
    return replace(
        shard,
        index=index,
        samples=len(table),
        captions=captions,
        questions=questions,
        of_samples=shard.of_samples or shard.samples,
        rows_sha256=sha256,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    from data_prep.shards.processes import add_workers

    parser = Parser(prog="python -m data_prep.split", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a manifest of data_prep.index")
    parser.add_argument("--share", type=float, required=True, help="of the pictures that are held out, such as 0.01")
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other pictures (default: 0)")
    parser.add_argument("--ledgers", metavar="DIR", nargs="+", type=Path, default=[],
                        help="the raw folders that captioned shards were made from; for their ledgers")  # fmt: skip
    parser.add_argument("--without-near", action="store_true", help="keep only exact copies together; needs no ledger")
    add_workers(parser)
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.share) and 0 < options.share < 1):
        parser.error(f"--share {options.share}: must be between 0 and 1")
    print_settings(options)

    def work() -> int:
        from pipeline.data.manifest import load_manifest

        paths, kept = split(
            options.manifest, options.share, options.seed, options.ledgers, not options.without_near, options.workers
        )
        if kept:
            print(f"{kept} pictures stay in training: their group of near copies is too large to hold out")
        held, all_of = (load_manifest(path).samples for path in (paths[1], options.manifest))
        print(f"{held} of {all_of} samples are held out, {held / all_of:.2%}; asked for were {options.share:.2%}")
        for path in paths:
            manifest = load_manifest(path)
            print(f"{path}: {len(manifest.shards)} shards, {manifest.samples} samples, {manifest.captions} captions")
        print(paths[1])
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
