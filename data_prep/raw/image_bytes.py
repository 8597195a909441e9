"""Gets the image bytes of rows, as they were published: from files on this machine, or from the web (img2dataset)."""

import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_prep.raw.local_images import read_local
from data_prep.raw.raw_shards import ReadImageBytes
from data_prep.shards.ledger import Drop
from data_prep.tables.caption_filter import CaptionRules, passing
from data_prep.tables.row import Place, Row
from data_prep.web.fetching import FetchSettings, fetch
from pipeline.web.url_guard import RefusedError, clean_url

LEAST_TRIED = 30
"""Fewer images than this may all be lost. When almost none of more images arrives, the network is probably down."""


@contextmanager
def local_image_bytes(root: Path, max_bytes: int, rules: CaptionRules) -> Iterator[ReadImageBytes]:
    """Each file is read when its row is asked for."""

    def read(row: Row) -> bytes | Drop:
        return unusable(row, rules) or read_local(root, row.url, max_bytes)

    yield read


@contextmanager
def web_image_bytes(
    rows: Sequence[Row], folder: Path, settings: FetchSettings, rules: CaptionRules, least_yield: float
) -> Iterator[ReadImageBytes]:
    """All rows are fetched first, into a private folder below `folder`, which is removed when the block ends well.

    Rows that must not be requested are refused here, and never reach the downloader. Raises ValueError as `check_yield`
    does.
    """
    urls: dict[int, str] = {}
    drops: dict[int, Drop] = {}
    for row in rows:
        drop = unusable(row, rules)
        if drop is None:
            try:
                urls[row.row] = clean_url(row.url, allow_loopback=settings.allow_loopback)
            except RefusedError as error:
                drop = Drop(error.reason)
        if drop is not None:
            drops[row.row] = drop
    private = folder / uuid.uuid4().hex
    results: dict[int, Place | Drop] = {}
    if urls:
        private.mkdir(parents=True)
        results = fetch(urls, private, settings)
        check_yield(urls, results, least_yield)

    def read(row: Row) -> bytes | Drop:
        result = drops.get(row.row) or results[row.row]
        return result.read() if isinstance(result, Place) else result

    yield read
    if urls:
        shutil.rmtree(private)


def check_yield(urls: Mapping[int, str], results: Mapping[int, Place | Drop], least_yield: float) -> None:
    """Raises ValueError when the network seems to be down: rows must not be dropped for that.

    That is: at least LEAST_TRIED URLs, less than this share of them arrived, and most of the others failed temporarily.
    """
    drops = [result for result in results.values() if isinstance(result, Drop)]
    arrived, temporary = len(urls) - len(drops), sum(drop.temporary for drop in drops)
    if len(urls) >= LEAST_TRIED and arrived < least_yield * len(urls) and temporary > len(drops) / 2:
        reasons = dict(Counter(drop.reason for drop in drops).most_common())
        raise ValueError(
            f"--least-yield {least_yield:g}: only {arrived} of {len(urls)} images arrived ({reasons}); "
            "check the network (against dns_failure, run a caching resolver on this machine, such as unbound) and run "
            "again, or give a lower --least-yield"
        )


def unusable(row: Row, rules: CaptionRules) -> Drop | None:
    """Why a row is dropped before anything is read: its picture is an evaluation's, it has no URL, no question that can
    be used, or no caption that passes the rules."""
    if row.drop or not row.url:
        return row.drop or Drop("no_url")
    if row.question_set:
        return None if row.questions else Drop(row.lost_questions[0] if row.lost_questions else "no_question")
    captions = passing(row.captions, rules)
    return captions if isinstance(captions, Drop) else None
