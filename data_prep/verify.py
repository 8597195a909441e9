"""Audit a manifest against the disk and name every fault: `python -m data_prep.verify MANIFEST [--decode]`.

Checked are the tars to the byte, their offset tables, what lies beside them (receipts, side tables, ledgers), and what
the manifest adds up.
"""

import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep.auditing.sidecar_checks import Fault, Record, companion_faults
from data_prep.command_line import Parser, add_workers, finish, print_settings
from data_prep.index import source_of
from data_prep.shards import tar_files
from data_prep.shards.checked_manifest import Accounts, checked_offsets, load_accounts, load_checked
from data_prep.shards.processes import map_in_order
from pipeline.data.manifest import Manifest, Shard, dropped_by_source


def find_faults(manifest: Manifest, *, decode: bool, workers: int = 1, empty: Sequence[Shard] = ()) -> Iterator[Fault]:
    """Every fault of every shard, in order, then those of the shards without samples, then keys that come again.

    Reads every byte of the tars; `decode` also decodes every picture. Keys are compared by a 64-bit hash: in memory, 16
    bytes a sample.
    """
    alone = [Manifest(manifest.root, (shard,)) for shard in (*manifest.shards, *empty)]
    checked = map_in_order(partial(_check_shard, decode=decode), alone, workers)
    keys: list[NDArray[np.uint64]] = []
    for faults, hashes in tqdm(checked, "verifying", len(alone), unit="shard", disable=not sys.stderr.isatty()):
        yield from faults
        keys.append(hashes)
    for number, repeated in shards_with_known_keys(keys).items():
        yield from _repeated_keys(manifest.shard_path(manifest.shards[number]), repeated)


def total_faults(path: Path, manifest: Manifest, accounts: Accounts) -> Iterator[Fault]:
    """What the manifest adds up wrongly."""
    for name, stated in accounts.totals.items():
        if stated != (found := getattr(manifest, name)):
            yield Fault("totals", path, f"{name} {stated!r}, its shards have {found}")
    dropped = dropped_by_source([*manifest.shards, *accounts.empty])
    if accounts.dropped not in (None, dropped):
        yield Fault("totals", path, f"dropped {accounts.dropped!r}, its shards say {dropped}")


def shards_with_known_keys(keys: Sequence[NDArray[np.uint64]]) -> dict[int, set[int]]:
    """The hashes that come more than once, under the number of the first shard that has them."""
    ordered = np.concatenate(keys)
    ordered.sort()
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    found: dict[int, set[int]] = {}
    known: set[int] = set()
    for number, hashes in enumerate(keys if len(repeated) else ()):
        if new := set(hashes[np.isin(hashes, repeated)].tolist()) - known:
            found[number] = new
            known |= new
    return found


def _repeated_keys(tar: Path, repeated: set[int]) -> Iterator[Fault]:
    with tar.open("rb") as file:
        for row in tar_files.offset_table(tar):
            try:
                key = tar_files.read_at(file, tar, row).key
            except ValueError:  # named already
                continue
            if (each := _key_hash(key)) in repeated:
                repeated.remove(each)
                yield Fault("duplicate key", tar, f"sample {key}: the key comes again in a later sample")


def _check_shard(manifest: Manifest, *, decode: bool) -> tuple[list[Fault], NDArray[np.uint64]]:
    """The faults of a manifest's one shard, and the hash of each sample's key."""
    records: list[Record] = []
    faults = list(_shard_faults(manifest, manifest.shards[0], records, decode=decode))
    return faults, np.array([_key_hash(record["key"]) for record in records], dtype=np.uint64)


def _shard_faults(manifest: Manifest, shard: Shard, records: list[Record], *, decode: bool) -> Iterator[Fault]:
    """The faults of one shard; puts the records that could be read into `records`."""
    tar = manifest.shard_path(shard)
    if not tar.is_file():
        yield Fault("missing tar", tar, "the manifest lists it")
        return
    if tar.is_symlink():
        yield Fault("link", tar, f"leads to {tar.readlink()}, where other bytes may be put")
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Fault("size", tar, f"{size} bytes, the manifest says {shard.bytes}")
    sha256 = tar_files.sha256_of(tar)
    if sha256 != shard.sha256:
        yield Fault("sha256", tar, f"{sha256}, the manifest says {shard.sha256}")
    try:
        table = tar_files.offset_table(tar)
    except ValueError as error:
        yield Fault("unreadable tar", tar, str(error))
    else:
        if len(table) != shard.samples:
            yield Fault("sample count", tar, f"{len(table)} samples, the manifest says {shard.samples}")
        if shard.index:
            yield from _offset_faults(manifest, shard, table)
        yield from _sample_faults(tar, shard, table, records, decode=decode)
    yield from _source_faults(tar, shard, records)
    yield from companion_faults(tar, shard, records)


def _offset_faults(manifest: Manifest, shard: Shard, table: NDArray[np.int64]) -> Iterator[Fault]:
    path = manifest.root / shard.index
    try:
        if not np.array_equal(checked_offsets(manifest, shard), table):
            yield Fault("offsets", path, "differs from the places of the samples in the tar; index again")
    except ValueError as error:
        yield Fault("offsets", path, str(error))


def _sample_faults(
    tar: Path, shard: Shard, table: NDArray[np.int64], records: list[Record], *, decode: bool
) -> Iterator[Fault]:
    with tar.open("rb") as file:
        for row in table:
            try:
                sample = tar_files.read_at(file, tar, row)
            except ValueError as error:
                yield Fault("damaged sample", tar, str(error))
                continue
            records.append({name: sample.record.get(name) for name in ("key", "captions", "sources", "source")})
            if problem := _record_problem(sample):
                yield Fault("record", tar, f"sample {sample.key}: {problem}")
            if decode and (problem := _picture_problem(sample)):
                yield Fault("unreadable JPEG", tar, f"sample {sample.key}: {problem}")
    captions = sum(len(record["captions"]) for record in records)
    if captions != shard.captions:
        yield Fault("caption count", tar, f"{captions} captions, the manifest says {shard.captions}")


def _source_faults(tar: Path, shard: Shard, records: Sequence[Record]) -> Iterator[Fault]:
    """The source in the manifest is that of the tar's name, and of every record that names one."""
    if shard.source != (named := source_of(tar)):
        yield Fault("source", tar, f"its name says {named!r}, the manifest {shard.source!r}")
    others = [each for each in records if each["source"] not in (None, shard.source)]
    if others:
        first = f"sample {others[0]['key']} says {others[0]['source']!r}"
        yield Fault(
            "source", tar, f"the records of {len(others)} samples are of another than {shard.source!r}: {first}"
        )


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _record_problem(sample: tar_files.Sample) -> str | None:
    captions = sample.record["captions"]
    return None if captions and all(caption.strip() for caption in captions) else "a caption is empty or missing"


def _picture_problem(sample: tar_files.Sample) -> str | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(sample.jpeg), formats=["JPEG"]) as image:
            image.load()
            size = image.size
    except Exception as error:  # whatever a decoder raises on a damaged picture is the finding
        return f"{type(error).__name__}: {error}"
    if size != (sample.record.get("width"), sample.record.get("height")):
        return f"{size[0]}x{size[1]}, its record says {sample.record.get('width')}x{sample.record.get('height')}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.verify", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path)
    parser.add_argument("--decode", action="store_true", help="also decode every picture")
    add_workers(parser)
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        manifest, accounts = load_checked(options.manifest), load_accounts(options.manifest)
        faults = 0
        found = find_faults(manifest, decode=options.decode, workers=options.workers, empty=accounts.empty)
        for fault in chain(total_faults(options.manifest, manifest, accounts), found):
            faults += 1
            detail = fault.detail.removeprefix(f"{fault.path}: ")  # of an error that names its file itself
            print(f"fault: {fault.kind}: {fault.path}: {' '.join(detail.split())}")
        if faults:
            raise ValueError(f"{options.manifest}: {faults} faults in {len(manifest.shards)} shards, each named above")
        for source, reasons in dropped_by_source([*manifest.shards, *accounts.empty]).items():
            if reasons:
                print(f"dropped of {source}: {', '.join(f'{number} {reason}' for reason, number in reasons.items())}")
        without = f" ({len(accounts.empty)} more lost all their samples)" if accounts.empty else ""
        print(
            f"sound: {len(manifest.shards)} shards, {manifest.samples} samples, {manifest.captions} captions{without}"
        )
        print(options.manifest)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
