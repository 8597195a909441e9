"""Compares the files beside a tar with the tar and the manifest: its receipt, and its side table or ledger."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.captioning.side_table import read_checked_table, side_table_path
from data_prep.shards.ledger import ledger_path, read_ledger
from data_prep.shards.receipts import CAPTIONED, DOWNLOADED, read_receipt, receipt_path
from pipeline.data.manifest import Shard


class Fault(NamedTuple):
    """One difference from the manifest. `kind` is one or two words, for counting; `detail` says what differs."""

    kind: str
    path: Path
    detail: str


Record = dict[str, Any]


def sidecar_faults(tar: Path, shard: Shard, records: Sequence[Record]) -> Iterator[Fault]:
    """The faults of the files beside a tar; `records` are those of its samples that could be read, in order."""
    yield from _receipt_faults(tar, shard)
    if shard.provenance.get("stage") == CAPTIONED:
        yield from _named("side table", side_table_path(tar), _side_table_problem(tar, shard, records))
    if shard.provenance.get("stage") == DOWNLOADED:
        yield from _named("ledger", ledger_path(tar), _ledger_problem(tar, shard, records))


def _named(kind: str, path: Path, problem: str | None) -> Iterator[Fault]:
    if problem:
        yield Fault(kind, path, problem)


def _receipt_faults(tar: Path, shard: Shard) -> Iterator[Fault]:
    path = receipt_path(tar)
    try:
        receipt = read_receipt(tar)
    except ValueError as error:
        yield Fault("receipt", path, str(error))
        return
    names = ("bytes", "samples", "captions", "questions")
    listed = {name: getattr(shard, name) for name in ("sha256", *names)} | shard.provenance
    told = {name: getattr(receipt, name) for name in names} | {"sha256": receipt.tar_sha256} | receipt.provenance()
    for name in dict.fromkeys((*told, *listed)):
        if (value := told.get(name)) != listed.get(name):
            yield Fault("receipt", path, f"{name} is {value!r}, but the manifest says {listed.get(name)!r}")


def _side_table_problem(tar: Path, shard: Shard, records: Sequence[Record]) -> str | None:
    """The first difference between a captioned shard's table of candidates and its web samples, or None."""
    try:
        rows, settings = read_checked_table(tar, str(shard.provenance.get("input_sha256")))
    except ValueError as error:
        return str(error)
    by_key: dict[str, list[Record]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(row)
    web = [record for record in records if "human" not in record["sources"] and not record["questions"]]
    without_caption = shard.provenance.get("dropped", {}).get("no_caption_survived", 0)
    if len(records) == shard.samples and len(by_key) != len(web) + without_caption:
        return f"has candidates of {len(by_key)} pictures, expected {len(web)} kept and {without_caption} dropped ones"
    for key, each in by_key.items():
        written = sum(row["source"] == "synthetic" for row in each)
        if [row["position"] for row in each] != list(range(len(each))):
            return f"a candidate of {key} is missing"
        if written != settings["sampling"].get("num_captions", written):
            number = settings["sampling"]["num_captions"]
            return f"{key} has {written} synthetic captions, but the settings say {number}"
    for record in web:
        kept = sorted(row["caption"] for row in by_key.get(record["key"], []) if row["kept"])
        if kept != sorted(record["captions"]):
            return f"the kept captions of {record['key']} differ from those in the tar"
    return None


def _ledger_problem(tar: Path, shard: Shard, records: Sequence[Record]) -> str | None:
    """The first difference between a downloaded shard's ledger and its samples and drop counts, or None."""
    try:
        rows = read_ledger(ledger_path(tar), ("status", "reason", "key"))
    except ValueError as error:
        return str(error)
    kept = [row["key"] for row in rows if row["status"] == "kept"]
    if len(kept) != shard.samples:
        return f"has {len(kept)} kept rows, but the manifest says {shard.samples} samples"
    if len(records) == shard.samples and kept != [record["key"] for record in records]:
        return "its kept rows are not the samples of the tar in the same order"
    dropped = Counter(row["reason"] for row in rows if row["status"] != "kept")
    if dropped != Counter(shard.provenance.get("dropped", {})):
        return f"dropped is {dict(dropped)}, but the manifest says {shard.provenance.get('dropped')}"
    return None
