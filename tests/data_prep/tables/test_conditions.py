"""--keep-where: which conditions can be written, and which rows they keep, of every kind of table."""

import csv
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.tables.conditions import failed, parse_conditions
from data_prep.tables.foreign_tars import Wanted, tar_rows
from data_prep.tables.formats import table_rows
from tests.support.foreign_tars import of_img2dataset, write_tar


@pytest.mark.parametrize(
    ("condition", "kept", "dropped", "unknown"),
    [
        (
            "similarity>=0.3",
            [0.3, "0.31", 1, "1e3"],
            [0.29, "-1", 0],
            [None, "", "much", math.nan, math.inf, True, [1]],
        ),
        ("a <= 2", [2, "1.5"], [2.1, "3"], [None, "two"]),
        ("a>-1e2", [0, "-99"], [-100], [None]),
        ("a<0", [-1], [0], [""]),
        ("year==2014", [2014, "2014", 2014.0, "2014.0"], [2015], ["in 2014"]),
        ("year!=2014", [2015, "2013"], [2014], [None]),
        ("NSFW==UNLIKELY", ["UNLIKELY", " UNLIKELY "], ["NSFW", "unlikely", 3], [None, "", " ", math.nan]),
        ("NSFW != NSFW", ["UNLIKELY", "UNSURE"], ["NSFW"], [None]),
        ("has_face==false", [False, "false"], [True, "no"], [None]),
        ("image width>256", [257], [256], [None]),
    ],
)
def test_a_condition_keeps_drops_or_cannot_tell(condition, kept, dropped, unknown):
    [parsed] = conditions = parse_conditions([condition])
    assert parse_conditions([str(parsed)]) == conditions
    assert [parsed.fault(value) for value in kept] == [None] * len(kept)
    assert [parsed.fault(value) for value in dropped] == ["condition_not_met"] * len(dropped)
    assert [parsed.fault(value) for value in unknown] == ["no_value_to_compare"] * len(unknown)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("similarity", "'similarity': is not a condition; give COLUMN, one of == != >= <= > <, and a value"),
        ("similarity=0.3", "is not a condition"),
        (">=0.3", "is not a condition"),
        ("a>=", "is not a condition"),
        ("a>1 or b<2", "is not a condition"),
        ("__import__('os')", "is not a condition"),
        ("NSFW>UNLIKELY", "'UNLIKELY' is not a number; compare texts by == or !="),
        ("a>=nan", "'nan' is not a number"),
    ],
)
def test_what_is_no_condition_is_one_line(condition, message):
    with pytest.raises(ValueError, match=r"^--keep-where ") as error:
        parse_conditions([condition])
    assert message in str(error.value) and "\n" not in str(error.value)


ROWS = [
    {"URL": "http://a/0.jpg", "TEXT": "kept", "similarity": 0.35, "NSFW": "UNLIKELY"},
    {"URL": "http://a/1.jpg", "TEXT": "far", "similarity": 0.1, "NSFW": "UNLIKELY"},
    {"URL": "http://a/2.jpg", "TEXT": "unknown", "similarity": None, "NSFW": "NSFW"},
    {"URL": "http://a/3.jpg", "TEXT": "unsafe", "similarity": 0.9, "NSFW": "NSFW"},
]
REASONS = [None, "condition_not_met", "no_value_to_compare", "condition_not_met"]
BOTH = parse_conditions(["similarity>=0.3", "NSFW==UNLIKELY"])


def write_rows(folder: Path, ending: str) -> Path:
    path = folder / f"t.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif ending in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter="," if ending == "csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        path.write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))
    return path


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "json", "jsonl"])
def test_rows_of_every_kind_of_table(tmp_path, ending):
    rows = list(table_rows(write_rows(tmp_path, ending), "URL", "TEXT", conditions=BOTH))
    assert [row.drop and row.drop.reason for row in rows] == REASONS
    assert [row.url for row in rows] == [row["URL"] for row in ROWS]


def test_fields_of_samples_of_tars(tmp_path):
    members = [m for number, row in enumerate(ROWS) for m in of_img2dataset(f"{number}", number, "a caption", **row)]
    path = write_tar(tmp_path / "t.tar", members)
    rows = list(tar_rows(path, Wanted(conditions=BOTH)))
    assert [row.drop and row.drop.reason for row in rows] == REASONS


def test_the_first_failed_condition_decides():
    assert failed(BOTH, [0.1, None]) == failed(BOTH[:1], [0.1])
    assert failed((), []) is None
