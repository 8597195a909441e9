"""Tables of every kind give the same rows, and none is lost on the way."""

import csv
import gzip
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.tables import formats
from data_prep.tables.formats import FORMATS
from data_prep.tables.row import Row
from data_prep.tables.sources import choose_source, load_sources, read_rows

ROWS = [
    ("http://a/1.jpg", 'a "red" cat'),
    ("http://b/2.jpg", "größe, one\ttwo"),
    ("", "no url"),
    ("http://c/3.jpg", ""),
]
EXPECTED = [
    Row(0, "http://a/1.jpg", ('a "red" cat',)),
    Row(1, "http://b/2.jpg", ("größe, one two",)),
    Row(2, "", ("no url",)),
    Row(3, "http://c/3.jpg", ()),
]


def text_of(kind):
    rows = [(url, caption.replace("\t", " ")) for url, caption in ROWS]
    if kind == "tsv":
        return "".join(f"{url}\t{caption}\n" for url, caption in [("url", "caption"), *rows])
    if kind == "csv":
        quoted = [(url, '"' + caption.replace('"', '""') + '"') for url, caption in rows]
        return "".join(f"{url},{caption}\r\n" for url, caption in [("url", "caption"), *quoted])
    objects = [{"url": url, "caption": caption} for url, caption in rows]
    return json.dumps(objects) if kind == "json" else "".join(json.dumps(each) + "\n" for each in objects)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["tsv", "csv", "json", "jsonl"])
def test_every_text_format_gives_the_same_rows(tmp_path, kind, packed):
    content = text_of(kind).encode()
    path = tmp_path / (f"t.{kind}.gz" if packed else f"t.{kind}")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert list(read_rows(choose_source("table"), path)) == EXPECTED


def test_parquet_gives_the_same_rows_and_a_folder_counts_on(tmp_path):
    rows = [(url or None, caption.replace("\t", " ") or None) for url, caption in ROWS]
    table = pa.table({"TEXT": [row[1] for row in rows], "URL": [row[0] for row in rows], "similarity": [0.3] * 4})
    for name in ("0.parquet", "1.parquet"):
        pq.write_table(table, tmp_path / name)
    source = choose_source("laion400m")
    assert list(read_rows(source, tmp_path / "0.parquet")) == EXPECTED
    both = list(read_rows(source, tmp_path))
    assert [row.row for row in both] == list(range(8))
    assert [row.url for row in both] == [row.url for row in EXPECTED] * 2


def test_conceptual_captions_tables_have_no_header_line(tmp_path):
    (tmp_path / "3m.tsv").write_text("a cat\thttp://a/1.jpg\n")
    (tmp_path / "12m.tsv").write_text("http://a/1.jpg\ta cat\n")
    expected = [Row(0, "http://a/1.jpg", ("a cat",))]
    assert list(read_rows(choose_source("cc3m"), tmp_path / "3m.tsv")) == expected
    assert list(read_rows(choose_source("cc12m"), tmp_path / "12m.tsv")) == expected


def test_sbu_is_one_object_of_lists(tmp_path):
    (tmp_path / "sbu.json").write_text(json.dumps({"image_urls": ["http://a/1.jpg"], "captions": ["a cat"]}))
    assert list(read_rows(choose_source("sbu"), tmp_path / "sbu.json")) == [Row(0, "http://a/1.jpg", ("a cat",))]


def test_short_lines_and_bad_bytes_lose_no_row(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"url,caption\nhttp://a/1.jpg\nhttp://b/2.jpg,caf\xe9\nhttp://c/3.jpg,ok,extra\n")
    rows = list(read_rows(choose_source("table"), tmp_path / "t.csv"))
    assert [(row.url, row.captions) for row in rows] == [
        ("http://a/1.jpg", ()), ("http://b/2.jpg", ("caf\ufffd",)), ("http://c/3.jpg", ("ok",)),
    ]  # fmt: skip


QUIRKS = ['she said "hi" to a dog', "plain", "two\nlines", "tab\there", '"quoted"', "a\r\nb", ""]


@pytest.mark.parametrize("ending", ["tsv", "csv", "tsv.gz"])
def test_a_table_that_pandas_wrote_has_its_captions(tmp_path, ending):
    table = pd.DataFrame({"url": [f"http://a/{i}.jpg" for i in range(len(QUIRKS))], "caption": QUIRKS})
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        table.to_csv(tmp_path / f"t.{ending}", sep="," if ending == "csv" else "\t", index=False, quoting=quoting)
        rows = list(read_rows(choose_source("table"), tmp_path / f"t.{ending}"))
        assert [row.captions for row in rows] == [(each,) if each else () for each in QUIRKS]
        assert [row.url for row in rows] == list(table["url"])


def test_quotes_in_a_plain_tsv_are_text_and_swallow_no_row(tmp_path):
    captions = ['"a dog" runs', 'a 5" disk', '"open', "plain", 'so "x', 'y"']
    (tmp_path / "t.tsv").write_text("url\tcaption\n" + "".join(f"http://a/1.jpg\t{each}\n" for each in captions))
    rows = list(read_rows(choose_source("table"), tmp_path / "t.tsv"))
    assert [row.captions for row in rows] == [(each,) for each in captions]
    (tmp_path / "cc3m.tsv").write_text("".join(f"{each}\thttp://a/1.jpg\n" for each in ['"open', '"a dog"', 'end"']))
    assert [row.captions for row in read_rows(choose_source("cc3m"), tmp_path / "cc3m.tsv")] == [
        ('"open',), ('"a dog"',), ('end"',),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        'url,caption\na,x\nb,"a dog\nc,a cat\nd,a bird\n',
        'url,caption\na,x\nb,"a dog\nc,a cat\nd,a bird',
        'url,caption\na,x\nb,"a dog\nc,"a cat",z\nd,a bird\n',
    ],
)
def test_a_quote_that_is_not_closed_stops_with_its_line(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"t.csv: line 3: cannot be read as .csv \(.*\); correct its quotes"):
        list(read_rows(choose_source("table"), tmp_path / "t.csv"))


def test_a_list_of_captions_is_kept_whole(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"url": "http://a/1.jpg", "caption": ["one", " ", "two"]}\n')
    assert next(read_rows(choose_source("table"), tmp_path / "t.jsonl")).captions == ("one", "two")


def karpathy(*splits):
    return {
        "images": [
            {
                "filepath": "val2014",
                "filename": f"{i}.jpg",
                "split": split,
                "sentences": [{"raw": f"c{i}"}, {"raw": "d"}],
            }
            for i, split in enumerate(splits)
        ]
    }


def test_coco_training_takes_restval_in_and_numbers_rows_by_their_place(tmp_path):
    (tmp_path / "k.json").write_text(json.dumps(karpathy("test", "train", "val", "restval")))
    source = choose_source("coco")
    rows = list(read_rows(source, tmp_path / "k.json"))
    assert rows == [Row(1, "val2014/1.jpg", ("c1", "d")), Row(3, "val2014/3.jpg", ("c3", "d"))]
    assert [row.row for row in read_rows(source, tmp_path / "k.json", split="test")] == [0]
    with pytest.raises(ValueError, match=r"--split tset: .*; its splits are restval, test, train, val"):
        list(read_rows(source, tmp_path / "k.json", split="tset"))


def test_visual_genome_phrases_are_captions_once_each(tmp_path):
    regions = [{"phrase": "a dog "}, {"phrase": "a cat"}, {"phrase": "a dog"}]
    (tmp_path / "vg.json").write_text(json.dumps([{"id": 107, "regions": regions}]))
    assert list(read_rows(choose_source("visual_genome"), tmp_path / "vg.json")) == [
        Row(0, "107.jpg", ("a dog", "a cat"), picture_id=107)
    ]


def test_the_sources_are_complete():
    sources = load_sources()
    assert list(sources) == [
        "coco", "coco_captions", "visual_genome", "vqav2", "visual_genome_qa", "cc3m", "cc12m", "sbu", "laion400m",
        "table", "imagefolder", "tars", "llava",
    ]  # fmt: skip
    assert all(source.licence and 0 < source.expected_yield <= 1 for source in sources.values())
    human = {name for name, source in sources.items() if source.captions == "human"}
    assert human == {"coco", "coco_captions", "visual_genome", "vqav2", "visual_genome_qa"}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", "a,b\n1,2\n", "has no column 'url'; its columns are a, b"),
        ("t.xlsx", "x", "is not a known kind of table"),
        ("t.parquet", "not parquet", "cannot be read as .parquet"),
        ("t.json", "{", "cannot be read as .json"),
        ("t.jsonl", "[1]\n", "an entry is of type list, expected an object with url, caption"),
        ("t.csv.gz", "not gzip", "cannot be read as .csv"),
        ("t.csv", "url,caption,url\na,b,c\n", "the column 'url' comes twice"),
        ("t.json", "[" * 100_000, "cannot be read as .json"),
        ("t.jsonl", '{"url":' * 100_000, "cannot be read as .jsonl"),
        ("t.json", '[{"url": ' + "9" * 5000 + "}]", "cannot be read as .json"),
        ("t.json", '{"url": null, "caption": null}', "'url' is of type NoneType, expected a list"),
        ("t.json", '{"url": "0123", "caption": "abcd"}', "'url' is of type str, expected a list"),
        ("t.json", '{"url": ["a", "b"], "caption": ["a b"]}', "'url' and 'caption' are lists of 2 and 1 values"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"--input {tmp_path / name}: {message}"):
        list(read_rows(choose_source("table"), tmp_path / name))


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_table_that_is_no_file_is_named_and_not_waited_for(tmp_path, kind, ending):
    path = tmp_path / f"t{ending}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for given in (path, tmp_path):  # the table, and a folder of tables
        with pytest.raises(ValueError, match=f"--input {path}: is not a regular file"):
            list(read_rows(choose_source("table"), given))


def test_a_table_behind_a_symlink_is_read(tmp_path):
    (tmp_path / "kept.csv").write_text(text_of("csv"), newline="")
    (tmp_path / "t.csv").symlink_to(tmp_path / "kept.csv")
    assert list(read_rows(choose_source("table"), tmp_path / "t.csv")) == EXPECTED


@pytest.mark.parametrize("packed", [False, True])
def test_json_that_would_fill_the_memory_is_not_read_to_its_end(tmp_path, packed, monkeypatch):
    monkeypatch.setattr(formats, "PIECE", 1000)
    monkeypatch.setattr(formats, "LONGEST_TEXT", 5000)
    content = text_of("json")
    path = tmp_path / ("t.json.gz" if packed else "t.json")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert list(read_rows(choose_source("table"), path)) == EXPECTED
    long = b" " * 5001 + b"\xff" * 1_000_000  # damaged after it, which reading on would tell
    path.write_bytes(gzip.compress(long)[:-20] if packed else long)
    with pytest.raises(ValueError, match=r"has a text of more than 5000 characters.*write JSON lines"):
        list(read_rows(choose_source("table"), path))


def test_damage_inside_a_packed_table_is_named(tmp_path):
    packed = bytearray(gzip.compress(b"url,caption\n" + b"".join(b"%d.jpg,caption %d\n" % (i, i) for i in range(5000))))
    for place in range(200, len(packed) - 50, 97):
        packed[place] ^= 0x5A
    (tmp_path / "t.csv.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=f"--input {tmp_path / 't.csv.gz'}: cannot be read as .csv"):
        list(read_rows(choose_source("table"), tmp_path / "t.csv.gz"))


def test_a_parquet_column_of_two_is_not_chosen(tmp_path):
    table = pa.table([["0.jpg"], ["1.jpg"], ["a b"]], names=["url", "url", "caption"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="the column 'url' comes twice"):
        list(read_rows(choose_source("table"), tmp_path / "t.parquet"))


def test_halves_of_surrogate_pairs_are_replaced_in_urls_and_captions(tmp_path):
    lines = [r'{"url": "http://a/\ud83d.jpg", "caption": ["half \ude00 of it", "\ud83d\ude00 whole"]}']
    (tmp_path / "t.jsonl").write_text(lines[0] + "\n")
    (tmp_path / "t.json").write_text(f"[{lines[0]}]")
    (tmp_path / "vg.json").write_text(r'[{"id": 1, "regions": [{"phrase": "a \ud83d cat"}]}]')
    expected = [Row(0, "http://a/\ufffd.jpg", ("half \ufffd of it", "\U0001f600 whole"))]
    for name in ("t.jsonl", "t.json"):
        assert list(read_rows(choose_source("table"), tmp_path / name)) == expected
    assert list(read_rows(choose_source("visual_genome"), tmp_path / "vg.json")) == [
        Row(0, "1.jpg", ("a \ufffd cat",), picture_id=1)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_carriage_return_inside_a_tab_separated_caption_ends_no_row(tmp_path, end):
    lines = ["caption\turl", 'a\rb "c\thttp://a/1.jpg', "", "d e\thttp://b/2.jpg"]
    (tmp_path / "t.tsv").write_bytes((end.join(lines) + end).encode())
    rows = list(read_rows(choose_source("table"), tmp_path / "t.tsv"))
    assert rows == [Row(0, "http://a/1.jpg", ('a\rb "c',)), Row(1, "http://b/2.jpg", ("d e",))]


ENTRY = {
    "title": "t", "home": "", "licence": "x", "format": "table", "url_column": "url", "caption_column": "caption",
    "captions": "web", "rows": 0, "expected_yield": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("my.set", {}, "source 'my.set': a name must be"),
        ("x" * 65, {}, "1 to 64 letters"),
        ("own", {"licence": None}, "source 'own': licence missing; add it"),
        ("own", {"format": "tabel"}, "format 'tabel': use one of table, imagefolder, tars"),
        ("own", {"captions": "humen"}, "captions 'humen': use one of human, web"),
        ("own", {"rows": "many"}, "rows 'many': expected int"),
        ("own", {"expected_yield": 3}, "expected_yield must be above 0"),
        ("own", {"url_column": None}, "a table needs url_column"),
        ("own", {"columns": [1]}, "expected a list of names"),
        ("own", {"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_a_malformed_entry_of_the_sources_is_named(tmp_path, name, change, message):
    fields = {field: value for field, value in (ENTRY | change).items() if value is not None}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({name: fields}))
    with pytest.raises(ValueError, match=message):
        load_sources(tmp_path / "sources.yaml")


@pytest.mark.parametrize("content", ["", "- a", "own: 3", "own: [", "{1: 2}"])
def test_a_file_of_sources_that_is_none_is_named(tmp_path, content):
    (tmp_path / "sources.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"sources\.yaml: "):
        load_sources(tmp_path / "sources.yaml")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_line_without_end_is_refused(ending, tmp_path, monkeypatch):
    """A packed megabyte can hold a line of a gigabyte."""
    monkeypatch.setattr(formats, "LONGEST_ROW", 5000)
    path = tmp_path / f"table.{ending}.gz"
    path.write_bytes(gzip.compress((text_of(ending) + "x" * 100_000).encode()))
    with pytest.raises(ValueError, match=r"has more than 5000 characters; repair the table"):
        list(read_rows(choose_source("table"), path))
