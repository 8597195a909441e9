"""Audit a manifest against the disk and name every fault: `python -m data_prep.verify MANIFEST [--decode]`."""

import hashlib
import io
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_prep import shard_io
from data_prep.checked_manifest import load_checked
from data_prep.command_line import Parser, add_workers, finish, print_settings
from data_prep.processes import map_in_order
from pipeline.data.manifest import Manifest, Shard


class Fault(NamedTuple):
    """One thing that is not as the manifest says. `kind` is one word or two, for counting; `detail` says which."""

    kind: str
    path: Path
    detail: str


def find_faults(manifest: Manifest, *, decode: bool, workers: int = 1) -> Iterator[Fault]:
    """Every fault of every shard, in order, then keys that come in more than one shard.

    Reads every byte of the tars; `decode` also decodes every picture. Keys are compared by a 64-bit hash: in memory, 16
    bytes a sample.
    """
    alone = [Manifest(manifest.root, (shard,)) for shard in manifest.shards]
    checked = map_in_order(partial(_check_shard, decode=decode), alone, workers)
    keys: list[NDArray[np.uint64]] = []
    for faults, hashes in tqdm(checked, "verifying", len(alone), unit="shard", disable=not sys.stderr.isatty()):
        yield from faults
        keys.append(hashes)
    for number, repeated in shards_with_known_keys(keys).items():
        yield from _repeated_keys(manifest.shard_path(manifest.shards[number]), repeated)


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
        for row in shard_io.offset_table(tar):
            try:
                key = shard_io.read_at(file, tar, row).key
            except ValueError:  # named already
                continue
            if (each := _key_hash(key)) in repeated:
                repeated.remove(each)
                yield Fault("duplicate key", tar, f"sample {key}: the key comes again in a later sample")


def _check_shard(manifest: Manifest, *, decode: bool) -> tuple[list[Fault], NDArray[np.uint64]]:
    """The faults of a manifest's one shard, and the hash of each sample's key."""
    hashes: list[int] = []
    faults = list(_shard_faults(manifest, manifest.shards[0], hashes, decode=decode))
    return faults, np.array(hashes, dtype=np.uint64)


def _shard_faults(manifest: Manifest, shard: Shard, hashes: list[int], *, decode: bool) -> Iterator[Fault]:
    tar = manifest.shard_path(shard)
    if not tar.is_file():
        yield Fault("missing tar", tar, "the manifest lists it")
        return
    size = tar.stat().st_size
    if size != shard.bytes:
        yield Fault("size", tar, f"{size} bytes, the manifest says {shard.bytes}")
    sha256 = shard_io.sha256_of(tar)
    if sha256 != shard.sha256:
        yield Fault("sha256", tar, f"{sha256}, the manifest says {shard.sha256}")
    try:
        table = shard_io.offset_table(tar)
    except ValueError as error:
        yield Fault("unreadable tar", tar, str(error))
        return
    if len(table) != shard.samples:
        yield Fault("sample count", tar, f"{len(table)} samples, the manifest says {shard.samples}")
    yield from _offset_faults(manifest, shard, table)
    yield from _sample_faults(tar, shard, table, hashes, decode=decode)


def _offset_faults(manifest: Manifest, shard: Shard, table: NDArray[np.int64]) -> Iterator[Fault]:
    path = manifest.root / shard.index
    try:
        stored = manifest.offsets(shard) if path.is_file() else np.zeros((0, 0), np.int64)
    except Exception as error:  # a damaged header makes numpy raise nearly anything
        yield Fault("offsets", path, f"cannot be read: {error}")
        return
    if not np.array_equal(stored, table):
        yield Fault("offsets", path, "missing, or differs from the places of the samples in the tar; index again")


def _sample_faults(
    tar: Path, shard: Shard, table: NDArray[np.int64], hashes: list[int], *, decode: bool
) -> Iterator[Fault]:
    captions = 0
    with tar.open("rb") as file:
        for row in table:
            try:
                sample = shard_io.read_at(file, tar, row)
            except ValueError as error:
                yield Fault("damaged sample", tar, str(error))
                continue
            hashes.append(_key_hash(sample.key))
            captions += len(sample.record["captions"])
            if problem := _record_problem(sample):
                yield Fault("record", tar, f"sample {sample.key}: {problem}")
            if decode and (problem := _picture_problem(sample)):
                yield Fault("unreadable JPEG", tar, f"sample {sample.key}: {problem}")
    if captions != shard.captions:
        yield Fault("caption count", tar, f"{captions} captions, the manifest says {shard.captions}")


def _key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _record_problem(sample: shard_io.Sample) -> str | None:
    captions = sample.record["captions"]
    return None if captions and all(caption.strip() for caption in captions) else "a caption is empty or missing"


def _picture_problem(sample: shard_io.Sample) -> str | None:
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
        manifest = load_checked(options.manifest)
        faults = 0
        for fault in find_faults(manifest, decode=options.decode, workers=options.workers):
            faults += 1
            print(f"fault: {fault.kind}: {fault.path}: {fault.detail}")
        if faults:
            raise ValueError(f"{options.manifest}: {faults} faults in {len(manifest.shards)} shards, each named above")
        print(f"sound: {len(manifest.shards)} shards, {manifest.samples} samples, {manifest.captions} captions")
        print(options.manifest)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
