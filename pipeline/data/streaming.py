"""Shards from HTTP(S) URLs and `pipe:` commands, without a manifest: read from begin to end, through webdataset.

Each worker of each rank passes endlessly over shards of its own, in an order that is drawn again for each pass, through
a buffer of `SHUFFLE_SAMPLES`. A tar is not compressed. A sample is a picture (`KEY.jpg`; see `PICTURES`) with one of
these: `KEY.json` with `key` and `captions`, as data_prep writes, or, as img2dataset writes both, `KEY.txt`, or
`KEY.json` with `caption`. A run logs at its start what streaming cannot promise (`CANNOT_PROMISE`). A `pipe:` command
is run by the shell: it comes from the recipe, never from a manifest.

This is the one module that knows webdataset, of which it uses the grouping of files into samples, and the shuffle
buffer. `streamed_tar` opens URLs and reads tars.
"""

import hashlib
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from tarfile import BLOCKSIZE
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from pipeline.config import Data
from pipeline.data import streamed_tar
from pipeline.data.records import captions_of, foreign_caption, read_record
from pipeline.data.stream import Sample, UnreadableShardError, draw_sample
from pipeline.data.streamed_tar import FAULTS, HostileTarError, files, opened
from pipeline.data.transforms import decode

log = logging.getLogger(__name__)
SCHEMES = ("https://", "http://", "pipe:")
TRIES = 4
PICTURES = ("jpg", "jpeg", "png", "webp")  # endings of pictures in foreign tars
BACK_OFF_S = 1.0  # before the second try; twice as long before each one after
SHUFFLE_SAMPLES = 1000  # a worker; still encoded: about 100 MB
CANNOT_PROMISE = (
    "streaming from data.urls, without a manifest: the order of samples depends on the number of ranks and workers; "
    "a resume begins a new pass over the shards; the number of samples is unknown, so the run ends after run.steps "
    "and no epoch is exact; each rank reads its own shards, so samples of a rank with fewer shards come more often"
)


@dataclass(frozen=True)
class ShardUrls:
    """The shards of a streamed data set, braces expanded."""

    urls: tuple[str, ...]

    def digest(self) -> str:
        """sha256 over the URLs: all that is known of the data."""
        return hashlib.sha256("\n".join(self.urls).encode()).hexdigest()

    def check_readers(self, world_size: int, num_workers: int) -> None:
        """Raises ValueError when there are fewer shards than workers of all ranks."""
        readers = world_size * max(1, num_workers)
        if len(self.urls) < readers:
            raise ValueError(
                f"data.urls: {len(self.urls)} shards are too few for {world_size} ranks x {max(1, num_workers)} "
                f"workers = {readers} readers; lower data.num_workers"
            )


def expand_urls(patterns: Sequence[str]) -> ShardUrls:
    """Expand the braces of each pattern. Raises ValueError naming a pattern that cannot be a URL, or comes twice."""
    from braceexpand import braceexpand

    urls: list[str] = []
    for pattern in patterns:
        if not pattern.startswith(SCHEMES):
            raise ValueError(
                f"data.urls {pattern}: must begin with {' or '.join(SCHEMES)}; of local tars make a manifest: "
                "`python -m data_prep.download tars FOLDER --output DIR`, then `python -m data_prep.index DIR`"
            )
        try:
            urls += braceexpand(pattern)
        except ValueError as error:
            raise ValueError(f"data.urls {pattern}: its braces cannot be expanded ({error})") from error
    if len(set(urls)) < len(urls):
        twice = next(url for url in urls if urls.count(url) > 1)
        raise ValueError(f"data.urls {twice}: is named twice; remove one of them")
    return ShardUrls(tuple(urls))


class StreamedSamples(IterableDataset[Sample]):
    """This rank's samples for `num_batches` micro batches of `batch_size`: every rank has as many, whatever it reads.

    With W workers, worker w makes micro batches w, w + W, ..., as torch's DataLoader takes them. Draws depend on (seed,
    first step, pass, key). A sample that cannot be read is passed over and counted in the next one.
    """

    def __init__(
        self, urls: ShardUrls, settings: Data, image_size_px: int, seed: int, rank: int, world_size: int,
        first_step: int, num_batches: int, batch_size: int,
    ) -> None:  # fmt: skip
        self.settings, self.image_size_px, self.rank, self.world_size = settings, image_size_px, rank, world_size
        self.num_batches, self.batch_size = num_batches, batch_size
        self.seed = f"{urls.digest()}/{seed}/{first_step}"
        self.urls = list(urls.urls)
        random.Random(f"{self.seed}/shards").shuffle(self.urls)

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        reader = self.rank * num_workers + worker
        own = self.urls[reader :: self.world_size * num_workers]
        num_batches = len(range(worker, self.num_batches, num_workers))
        return islice(self._endless(own), num_batches * self.batch_size)

    def _endless(self, urls: list[str]) -> Iterator[Sample]:
        corrupt, fault = 0, ValueError("the tars hold no sample")
        for number in count():
            found = False
            for raw in _one_pass(urls, f"{self.seed}/{number}"):
                try:
                    sample = self._sample(raw, number, corrupt)
                except ValueError as error:
                    corrupt, fault = corrupt + 1, error
                else:
                    corrupt, found = 0, True
                    yield sample
            if not found:
                raise UnreadableShardError(
                    f"data.urls {urls[0]} and {len(urls) - 1} more: no readable sample ({fault}); check the URLs, the "
                    "network and the tars"
                )

    def _sample(self, raw: dict[str, Any], number: int, corrupt: int) -> Sample:
        if "fault" in raw:
            raise ValueError(raw["fault"])
        picture, text, record = _files(raw)
        if picture is None or text is record is None:
            lacking = f"picture, {', '.join(PICTURES)}," if picture is None else "txt or json"
            raise ValueError(
                f"{raw['__key__']}: has no {lacking} beside its other files; make a manifest, which finds them "
                "anywhere in a tar"
            )
        try:
            key, texts = read_record(record or b"{}")
        except ValueError:
            caption = _decoded(text, raw["__key__"]) if text is not None else foreign_caption(record or b"")
            if caption is None:
                raise
            key, texts = f"{raw['__url__']}/{raw['__key__']}", captions_of([caption])
        rng = random.Random(f"{self.seed}/{number}/{key}")
        return draw_sample(key, decode(picture), texts, corrupt, rng, self.settings, self.image_size_px)


def _files(raw: dict[str, Any]) -> list[bytes | None]:
    """The picture, txt and json of a sample. A whole picture (`jpg`) counts before that of a part (`face.jpg`).

    A picture and a text belong together if their parts are equal, or one of them has none. Raises ValueError when there
    are several, of which no one can say which belong together.
    """
    parts = {name: name.rpartition(".")[0] for name in raw}
    pictures = [name for name in raw if name.rpartition(".")[2] in PICTURES]
    shown = {parts[name] for name in pictures}
    found = [[name for name in pictures if not parts[name]] or pictures]
    main = parts[found[0][0]] if pictures else ""
    for ending in ("txt", "json"):
        texts = [name for name in raw if name.rpartition(".")[2] == ending]
        loose = [name for name in texts if "" in (main, parts[name]) and parts[name] not in shown]
        found.append([name for name in texts if parts[name] == main] or loose)
    if several := next((names for names in found if len(names) > 1), None):
        raise ValueError(f"{raw['__key__']}: has {' and '.join(several[:3])}; give each picture a key of its own")
    return [raw[names[0]] if names else None for names in found]


def _decoded(text: bytes, key: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: its text is not UTF-8 ({error.reason}); convert the texts with iconv") from error


def _one_pass(urls: Sequence[str], seed: str) -> Iterator[dict[str, Any]]:
    """Every sample of the shards once, shards and samples in an order drawn from `seed`."""
    from webdataset.filters import shuffle

    rng = random.Random(seed)
    shards = rng.sample(urls, len(urls))
    mixed = shuffle(SHUFFLE_SAMPLES, initial=SHUFFLE_SAMPLES // 2, rng=rng)
    yield from mixed(sample for url in shards for sample in _patiently(url))


def _patiently(url: str) -> Iterator[dict[str, Any]]:
    """The samples of one shard. After a failure it is read again, `TRIES` times at most, without the samples given;
    then the rest of it is passed over until the next pass, and counted once."""
    given = 0
    for tries in range(1, TRIES + 1):
        try:
            for sample in islice(_members(url), given, None):
                given += 1
                yield sample
            return
        except FAULTS as error:
            reason = f"{type(error).__name__}: {error.args[0] if error.args else error}"
            if tries == TRIES:
                fault = f"{url} failed {TRIES} times, the last time with {reason}"
                log.warning("%s; passed over in this pass", fault)
                yield {"__url__": url, "fault": fault}
                return
            wait_s = BACK_OFF_S * 2 ** (tries - 1)
            log.warning("%s: %s after %d samples; trying again in %g s", url, reason, given, wait_s)
            time.sleep(wait_s)


def _bounded(found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The files that have a key; of one key only so many that memory holds them. Raises HostileTarError after that."""
    from webdataset.tariterators import base_plus_ext

    last, held = "", 0
    for file in found:
        key = base_plus_ext(file["fname"])[0]
        if key is None:
            continue
        held = len(file["data"]) + BLOCKSIZE + (held if key == last else 0)
        if held > streamed_tar.MOST_BYTES:
            raise HostileTarError(f"has {streamed_tar.MOST_BYTES >> 20} MiB under one key; give each sample its own")
        last = key
        yield file


def _members(url: str) -> Iterator[dict[str, Any]]:
    """A shard's samples: endings to contents, with `__key__` and `__url__`. A damaged part is one with a `fault`."""
    from webdataset.tariterators import group_by_keys

    faults: list[Exception] = []
    hostile: list[Exception] = []

    def note(error: Exception) -> bool:
        faults.append(error)
        return True

    try:
        with opened(url) as tar:
            yield from group_by_keys(_bounded(files(tar, hostile)), handler=note)
            for error in faults:
                yield {"__url__": url, "fault": f"{url}: {error.args[0]}"}
            if hostile:
                raise hostile[0]  # so a command is ended, and its rest not read
            if not tar.finish():
                yield {"__url__": url, "fault": f"{url}: is damaged before byte {tar.bytes}; the rest is not read"}
    except FAULTS:
        raise
    except Exception as error:
        yield {"__url__": url, "fault": f"{url}: {str(error) or type(error).__name__}; the rest is not read"}
