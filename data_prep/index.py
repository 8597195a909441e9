"""Index finished shards into a manifest: `python -m data_prep.index DIR... --output MANIFEST`.

The manifest lists every shard of the folders that has a receipt, in the order given and then by name, and beside it, in
`NAME.index/`, one table of byte offsets per shard. The same shards give the same bytes.
"""

import io
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep import shard_io
from data_prep.command_line import Parser, add_workers, finish, print_settings
from data_prep.processes import map_in_order
from pipeline.data.manifest import Shard, manifest_json


def index_shards(folders: Sequence[Path], output: Path, workers: int = 1) -> list[Shard]:
    """Write the manifest `output` and its offset tables; returns the shards listed; a shard without samples is not.

    Raises ValueError, naming folder or tar, when a folder holds no finished shard, lies outside the manifest's folder,
    or lists the same tar twice, and when a tar is not what its receipt says.
    """
    if output.is_dir():
        raise ValueError(
            f"--output {output}: is a folder; name the manifest's file in it, such as {output / 'train.json'}"
        )
    tars: dict[str, Path] = {}
    for tar in (tar for folder in folders for tar in _finished_shards(folder)):
        receipt = shard_io.read_receipt(tar)
        if receipt.tar_sha256 in tars and receipt.samples:
            raise ValueError(f"{tar}: the same shard as {tars[receipt.tar_sha256]}; name each folder once")
        if receipt.samples:
            tars[receipt.tar_sha256] = tar
    if not tars:
        raise ValueError(f"{', '.join(map(str, folders))}: the finished shards hold no sample; see their drop counts")
    tables = output.with_suffix(".index")
    indexed = map_in_order(partial(_index_shard, output=output, tables=tables), tars.values(), workers)
    shards = list(tqdm(indexed, "indexing", len(tars), unit="shard", disable=not sys.stderr.isatty()))
    shard_io.replace_file(output, manifest_json(shards).encode())
    listed = {Path(shard.index).name for shard in shards}
    for path in tables.iterdir():  # of earlier manifests, or left half written
        if path.suffix in (".npy", shard_io.PARTIAL_SUFFIX) and path.name not in listed:
            path.unlink()
    shard_io.remove_partials(output)
    return shards


def _finished_shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of shards")
    tars = shard_io.finished_shards(folder)
    if not tars:
        raise ValueError(
            f"{folder}: no finished shard (a tar with its receipt) in it; run the step that writes it first"
        )
    return tars


def _index_shard(tar: Path, output: Path, tables: Path) -> Shard:
    """Scan one tar, write its offset table, and return its line of the manifest."""
    receipt = shard_io.read_receipt(tar)
    root = output.absolute().parent
    try:
        relative = tar.absolute().relative_to(root)
    except ValueError as error:
        raise ValueError(
            f"--output {output}: {tar} lies outside its folder; write it into a folder above all shards"
        ) from error
    if not tar.is_file() or tar.stat().st_size != receipt.bytes:
        raise ValueError(f"{tar}: missing or of another size than its receipt says ({receipt.bytes} bytes)")
    table = shard_io.offset_table(tar)
    if len(table) != receipt.samples:
        raise ValueError(f"{tar}: {len(table)} samples, but its receipt says {receipt.samples}")
    content = io.BytesIO()
    np.save(content, table, allow_pickle=False)
    path = tables / f"{tar.stem}-{receipt.tar_sha256[:12]}.npy"
    shard_io.replace_file(path, content.getvalue())
    return Shard(
        path=relative.as_posix(),
        index=f"{tables.name}/{path.name}",
        source=tar.stem.rsplit("-", 2)[0],
        bytes=receipt.bytes,
        sha256=receipt.tar_sha256,
        samples=receipt.samples,
        captions=receipt.captions,
        provenance={
            "stage": receipt.stage,
            "input_sha256": receipt.input_sha256,
            "config_hash": receipt.config_hash,
            "seed": receipt.seed,
            "models": receipt.models,
            "dropped": receipt.dropped,
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.index", description=__doc__)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a folder of finished shards")
    parser.add_argument("--output", metavar="MANIFEST", required=True, type=Path, help="in a folder above all shards")
    add_workers(parser)
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        shards = index_shards(options.folders, options.output, options.workers)
        samples, captions = sum(each.samples for each in shards), sum(each.captions for each in shards)
        print(f"{len(shards)} shards, {samples} samples, {captions} captions")
        print(options.output)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
