"""The tables of data_prep/MANIFEST.md name exactly the fields of the code, with their types."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from data_prep.captioning import side_table
from data_prep.raw.raw_shards import Storing, _record
from data_prep.raw.stored_image import ImageLimits, StoredImage
from data_prep.shards import drop_lists, ledger
from data_prep.shards.receipts import Receipt
from data_prep.shards.sample_json import record_fault
from data_prep.tables.caption_filter import CaptionRules
from data_prep.tables.row import Question, Row
from data_prep.tables.sources import choose_source
from pipeline.data.manifest import ManifestFile, Shard

PAGE = Path(ledger.__file__).parents[1] / "MANIFEST.md"
TYPES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    int | None: "whole number or null",
    dict[str, dict[str, int]] | None: "object of objects or null",
    dict[str, Any]: "object",
    dict[str, str]: "object of texts",
    dict[str, int]: "object of whole numbers",
    tuple[Shard, ...]: "list of shards",
}


def table_under(heading: str) -> dict[str, str]:
    """Name -> type of the first table below a heading of the page."""
    section = PAGE.read_text().partition(f"# {heading}\n")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    assert rows, f"{PAGE}: no table below {heading!r}"
    return {name: kind.strip("`") for name, kind in rows}


def fields_of(kind: type) -> dict[str, str]:
    """Name -> type of the fields of a model or a dataclass, in the words of the page."""
    hints = typing.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(hints)
    literals = {name: str for name in names if typing.get_origin(hints[name]) is typing.Literal}
    return {name: TYPES[(hints | literals)[name]] for name in names if name != "model_config"}


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("The manifest", fields_of(ManifestFile)),
        ("A shard in the manifest", fields_of(Shard)),
        ("The receipt", fields_of(Receipt)),
        ("The ledger", ledger.COLUMNS),
        ("The side table", side_table.COLUMNS),
        ("The drop list", drop_lists.COLUMNS),
    ],
)
def test_a_table_of_the_page_has_the_fields_of_the_code(heading: str, fields: dict[str, str]) -> None:
    assert table_under(heading) == fields


def test_the_sample_of_the_page_is_the_json_that_a_download_writes() -> None:
    storing = Storing(choose_source("table"), ImageLimits(1, 256, 1 << 20), CaptionRules(), "0" * 64)
    asked = {"questions": (Question(1, "a cat?", (("yes", 10),)),), "question_set": "vqav2_train2014"}
    record = _record("table_0", Row(0, "a.jpg", (), **asked), StoredImage(b"", 3, 2, None), storing)
    plain = _record("table_0", Row(0, "a.jpg", ("a cat",)), StoredImage(b"", 3, 2, None), storing)
    assert record.keys() - plain.keys() == asked.keys() and record_fault(record) is None is record_fault(plain)
    kinds = {str: "text", int: "whole number", list: "list"}
    found = {name: kind.removesuffix(" of texts") for name, kind in table_under("The JSON of a sample").items()}
    assert found == {name: kinds[type(value)] for name, value in record.items()}


def test_a_table_that_differs_is_seen() -> None:
    assert table_under("The manifest") != fields_of(Shard)
