"""Write a manifest: the list of all finished shards of some folders, with the place of every sample.

The manifest lists every shard that has a receipt, in the order of the folders and then by name. Beside it, in
`NAME.index/`, is one table of byte offsets for each shard. Shards without any sample have a list of their own: readers
skip them, but their drop counts are included. The same shards give the same bytes. MANIFEST.md describes the files.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.shards.offset_files import remove_unlisted, table_name, write_table
from data_prep.shards.processes import add_workers, map_in_order
from data_prep.shards.receipts import finished_shards, read_receipt, source_of
from data_prep.shards.tar_files import REMEDY, counted_table
from data_prep.tables.sources import known_sources
from data_prep.viewing.data_card import check_card, data_card
from pipeline.command_line import Parser, finish, print_settings
from pipeline.data.manifest import COUNTS, PLACES, Shard, manifest_json, read_manifest
from pipeline.files import remove_partials, replace_file
from pipeline.progress_line import ProgressLine


def index_shards(folders: Sequence[Path], output: Path, workers: int = 1) -> list[Shard]:
    """Write the manifest `output` and its offset tables; returns the listed shards, which have samples.

    Raises ValueError, with folder or tar, when a folder has no finished shard or is outside the manifest's folder, when
    a tar comes twice, and when a tar differs from its receipt.
    """
    if output.is_dir() or output.suffix != ".json":
        raise ValueError(f"--output {output}: must be a file that ends in .json, such as {output.with_suffix('')}.json")
    tars = [tar for folder in folders for tar in _finished_shards(folder)]
    _refuse_repeats(tars)
    tables = output.with_suffix(".index")
    indexed = map_in_order(partial(_index_shard, output=output, tables=tables), tars, workers)
    found = list(ProgressLine("indexing", len(tars), "shards").follow(indexed))
    shards = [shard for shard in found if shard.samples]
    if not shards:
        raise ValueError(
            f"{', '.join(map(str, folders))}: all finished shards are empty; see the drop counts in their receipts"
        )
    replace_file(output, manifest_json(shards, [shard for shard in found if not shard.samples]).encode())
    remove_unlisted(tables, shards)
    remove_partials(output)
    return shards


def _refuse_repeats(tars: Sequence[Path]) -> None:
    """Raises ValueError when a shard comes twice: by two paths to its folder, or as a copy with the same bytes."""
    known: dict[str, Path] = {}
    for tar in tars:
        receipt = read_receipt(tar)
        for identity in (os.path.realpath(tar), receipt.tar_sha256 if receipt.samples else ""):
            if identity and identity in known:
                raise ValueError(f"{tar}: is the same shard as {known[identity]}; name each folder once")
            known[identity] = tar


def _finished_shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: is not a folder; name a folder of finished shards")
    tars = finished_shards(folder)
    if not tars:
        raise ValueError(
            f"{folder}: has no finished shard (a tar with its receipt); run data_prep.download or capfilt first"
        )
    return tars


def _index_shard(tar: Path, output: Path, tables: Path) -> Shard:
    """Scan one tar, write its offset table if it has samples, and return its entry of the manifest."""
    receipt = read_receipt(tar)
    relative = _below(output, tar)
    if not f"{relative}{tables.name}".isprintable():
        raise ValueError(f"--output {output}: its name, or that of {tar}, has unprintable characters; rename it")
    if not tar.is_file() or tar.stat().st_size != receipt.bytes:
        raise ValueError(f"{tar}: is missing, or its size is not the {receipt.bytes} bytes of its receipt; {REMEDY}")
    table, short_side_px = counted_table(tar)
    if len(table) != receipt.samples:
        raise ValueError(f"{tar}: has {len(table)} samples, but its receipt says {receipt.samples}; {REMEDY}")
    captions, questions = (int(number) for number in table[:, PLACES:COUNTS].sum(axis=0))
    if (captions, questions) != (receipt.captions, receipt.questions):
        raise ValueError(
            f"{tar}: has {captions} captions and {questions} questions, but its receipt says {receipt.captions} and "
            f"{receipt.questions}; {REMEDY}"
        )
    return Shard(
        path=relative.as_posix(),
        index=write_table(tables / table_name(tar, receipt.tar_sha256), table)[0] if receipt.samples else "",
        source=source_of(tar),
        bytes=receipt.bytes,
        sha256=receipt.tar_sha256,
        samples=receipt.samples,
        captions=receipt.captions,
        provenance=receipt.provenance(),
        questions=receipt.questions,
        short_side_px=short_side_px,
    )


def _below(output: Path, tar: Path) -> Path:
    """The path of a tar, relative to the folder of `output`. Raises ValueError when the tar is not below that folder.

    Symlinks are followed first. If the tar is then outside, the path as given counts, so a folder may be a symlink to
    another disk. With the given paths alone, manifests could have paths with `..`, which readers refuse. A tar must not
    be a symlink.
    """
    if tar.is_symlink():
        raise ValueError(f"{tar}: is a symlink to {tar.readlink()}; move the tar here, or symlink its folder instead")
    for follow in (os.path.realpath, os.path.abspath):
        root, folder = Path(follow(output.parent)), Path(follow(tar.parent))
        if folder.is_relative_to(root):
            return folder.relative_to(root) / tar.name
    raise ValueError(
        f"--output {output}: {tar} is outside its folder; write the manifest into a folder above all shards"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.index", description=__doc__)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="folders of finished shards")
    parser.add_argument(
        "--output", metavar="MANIFEST", required=True, type=Path, help="a .json file in a folder above all shards"
    )
    parser.add_argument("--card", metavar="README.md", type=Path, help="also write a card of the data set")
    parser.add_argument(
        "--sources", metavar="FILE", type=Path, help="for the card: your sources, in the file that download was given"
    )
    add_workers(parser)
    options = parser.parse_args(arguments)
    if options.sources and not options.card:
        parser.error("--sources: is for the card; give --card too")
    print_settings(options)

    def work() -> int:
        if options.card:
            check_card(options.card)
            known = known_sources(options.sources)
        shards = index_shards(options.folders, options.output, options.workers)
        if options.card:
            empty = read_manifest(options.output).empty_shards
            replace_file(options.card, data_card(options.output.stem, shards, known, empty))
            print(options.card)
        samples, captions = sum(each.samples for each in shards), sum(each.captions for each in shards)
        questions = sum(each.questions for each in shards)
        more = f", {questions} questions" if questions else ""
        print(f"{len(shards)} shards, {samples} samples, {captions} captions{more}")
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
