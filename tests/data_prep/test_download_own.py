"""The download from what people already have: parquet with pictures, imagefolders, LLaVA's and COCO's lists, own
sources; and several rows of one picture become one sample."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.download import MAX_BYTES
from data_prep.shards.receipts import finished_shards, receipt_path
from tests.data_prep.test_download import ledger, run, samples
from tests.support.web_folder import jpeg_bytes


def captions(folder: Path) -> list[list[str]]:
    return [each.record["captions"] for each in samples(folder)]


def summary(folder: Path) -> dict[str, object]:
    [path] = folder.glob("*.summary.json")
    found: dict[str, object] = json.loads(path.read_text())
    return found


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg_bytes(number))
    return folder


def test_parquet_with_pictures_as_datasets_writes_it(tmp_path, capsys):
    """A column of {bytes, path}, in several row groups and files; a cell without bytes or with others is counted."""
    cells = [{"bytes": jpeg_bytes(number), "path": "image.png"} for number in range(25)]
    cells[3]["bytes"], cells[7]["bytes"], cells[8]["bytes"] = None, b"no picture", bytes(MAX_BYTES + 1)
    texts = [f"caption {number}" for number in range(25)]
    texts[9] = ""
    (tmp_path / "hf").mkdir()
    for number, part in enumerate((slice(0, 20), slice(20, 25))):
        table = pa.table({"image": cells[part], "text": texts[part]})
        pq.write_table(table, tmp_path / "hf" / f"train-{number:05d}.parquet", row_group_size=6)
    flags = ("--url-column", "image", "--caption-column", "text", "--samples-per-shard", 4)
    assert run("table", tmp_path / "hf", *flags, "--output", tmp_path / "raw") == 0
    entries = ledger(tmp_path / "raw")
    dropped = {entry["row"]: entry["reason"] for entry in entries if entry["reason"]}
    assert dropped == {3: "no_picture", 7: "not_an_image", 8: "byte_cap", 9: "no_caption"} and len(entries) == 25
    assert "rows of one picture in such a table are joined with --captions human alone" in capsys.readouterr().out
    assert entries[21]["url"] == "train-00001.parquet/1", "a path may be the same for all pictures"
    kept = [number for number in range(25) if number not in dropped]
    assert captions(tmp_path / "raw") == [[f"caption {number}"] for number in kept]
    plain = pa.table({"image": [jpeg_bytes(number) for number in kept], "text": [texts[number] for number in kept]})
    pq.write_table(plain, tmp_path / "plain.parquet")
    assert run("table", tmp_path / "plain.parquet", *flags, "--output", tmp_path / "same") == 0
    assert [each.jpeg for each in samples(tmp_path / "same")] == [each.jpeg for each in samples(tmp_path / "raw")]
    for i in range(3):
        assert (
            run("table", tmp_path / "hf", *flags, "--output", tmp_path / "3", "--task-index", i, "--task-count", 3) == 0
        )
    assert {each.key for each in samples(tmp_path / "3")} == {each.key for each in samples(tmp_path / "raw")}
    assert not list((tmp_path / "raw").glob(".*.work"))


def test_human_captions_of_one_picture_in_parquet_are_one_sample(tmp_path, capsys):
    """By the pictures' bytes, over row groups and files; a cell without bytes is a row of its own."""
    rows = [(number, f"caption {k} of {number}") for k in range(3) for number in (2, 0, 1)]
    rows[4:4] = [(None, "of nothing"), (None, "of nothing")]
    (tmp_path / "hf").mkdir()
    for name, part in (("a", rows[:7]), ("b", rows[7:])):
        cells = [None if number is None else {"bytes": jpeg_bytes(number), "path": "x"} for number, _ in part]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table({"image": pa.array(cells, kind), "text": [text for _, text in part]})
        pq.write_table(table, tmp_path / "hf" / f"{name}.parquet", row_group_size=2)
    flags = ("--url-column", "image", "--caption-column", "text", "--captions", "human")
    assert run("table", tmp_path / "hf", *flags, "--output", tmp_path / "raw") == 0
    assert captions(tmp_path / "raw") == [[f"caption {k} of {number}" for k in range(3)] for number in (2, 0, 1)]
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == [None] * 3 + ["no_picture"] * 2
    told = capsys.readouterr().out
    assert "6 more rows had a picture of these; their captions are with it" in told and "note" not in told
    for i in range(2):
        more = ("--task-index", i, "--task-count", 2, "--samples-per-shard", 2)
        assert run("table", tmp_path / "hf", *flags, "--output", tmp_path / "2", *more) == 0
    assert {each.key for each in samples(tmp_path / "2")} == {each.key for each in samples(tmp_path / "raw")}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_an_imagefolder_with_its_metadata(tmp_path, pictures, name):
    rows = [{"file_name": f"{number}.jpg", "text": f"a picture, number {number}"} for number in range(5)]
    if name.endswith("csv"):
        lines = ['{file_name},"{text}"'.format(**row) for row in rows]
        (pictures / name).write_text("\n".join(["file_name,text", *lines]))
    elif name.endswith("jsonl"):
        (pictures / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), pictures / name)
    assert run("imagefolder", pictures, "--captions", "human", "--output", tmp_path / "raw") == 0
    assert captions(tmp_path / "raw") == [[f"a picture, number {number}"] for number in range(4)]
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == [None] * 4 + ["missing_file"]
    assert samples(tmp_path / "raw")[0].record["sources"] == ["human"]
    assert run("imagefolder", pictures / name, "--output", tmp_path / "same") == 0
    assert captions(tmp_path / "same") == captions(tmp_path / "raw")


def test_coco_captions_without_karpathys_split(tmp_path, pictures, capsys):
    """As captions_train2017.json: captions in any order, an image without any, annotations of no image."""
    images = [{"id": 10 + number, "file_name": f"{number}.jpg"} for number in range(4)]
    pairs = [(12, "two a"), (10, "zero a"), (12, "two b"), (11, "one a"), (99, "of none"), (10, "zero b")]
    annotations = [{"id": number, "image_id": image, "caption": text} for number, (image, text) in enumerate(pairs)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "val.json").write_text("[12]")
    flags = ("--images", pictures, "--output", tmp_path / "raw", "--not-in", tmp_path / "val.json")
    assert run("coco_captions", tmp_path / "captions.json", *flags) == 0
    assert captions(tmp_path / "raw") == [["zero a", "zero b"], ["one a"]]
    found = [entry["reason"] for entry in ledger(tmp_path / "raw")]
    assert found == [None, None, "coco_evaluation", "no_caption", "no_picture"]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": [{"caption": "x"}]}))
    assert run("coco_captions", tmp_path / "captions.json", "--images", pictures, "--output", tmp_path / "b") == 1
    assert "annotation 0 has no image_id and caption (KeyError('image_id'))" in capsys.readouterr().err


def conversation(image: str | None, *turns: str) -> dict[str, object]:
    said = [{"from": "human" if place % 2 == 0 else "gpt", "value": turn} for place, turn in enumerate(turns)]
    return ({"image": image} if image else {}) | {"id": "1", "conversations": said}


def test_the_first_answer_of_a_conversation_is_the_caption(tmp_path, pictures, capsys):
    entries = [
        conversation("0.jpg", "Describe it.\n<image>", "a red thing\n", "More?", "no"),
        conversation(None, "How are you?", "fine"),
        conversation("1.jpg", "<image>"),
        conversation("0.jpg", "<image>\nWhat is it?", "a thing that is red"),
    ]
    (tmp_path / "l.json").write_text(json.dumps(entries))
    assert run("llava", tmp_path / "l.json", "--images", pictures, "--output", tmp_path / "raw") == 0
    assert captions(tmp_path / "raw") == [["a red thing", "a thing that is red"]]
    assert [entry["reason"] for entry in ledger(tmp_path / "raw")] == [None, "no_picture", "no_caption"]
    assert summary(tmp_path / "raw")["joined_rows"] == 1
    (tmp_path / "l.json").write_text(json.dumps([{"image": "0.jpg"}]))
    assert run("llava", tmp_path / "l.json", "--images", pictures, "--output", tmp_path / "b") == 1
    assert "entry 0 has no list of conversations (KeyError('conversations'))" in capsys.readouterr().err


def test_rows_of_one_picture_are_one_sample_with_all_captions(tmp_path, pictures, capsys):
    """Five human captions in five rows, in any order, as in Flickr30K's table; the same caption comes once."""
    rows = [(number, f"caption {k} of {number}") for k in range(5) for number in (2, 0, 1)] + [(0, "caption 0 of 0")]
    (tmp_path / "t.csv").write_text("url,caption\n" + "".join(f"{number}.jpg,{text}\n" for number, text in rows))
    flags = ("--images", pictures, "--captions", "human", "--samples-per-shard", 2)
    assert run("table", tmp_path / "t.csv", *flags, "--output", tmp_path / "raw") == 0
    assert captions(tmp_path / "raw") == [[f"caption {k} of {number}" for k in range(5)] for number in (2, 0, 1)]
    assert "13 more rows had a picture of these; their captions are with it" in capsys.readouterr().out
    told = summary(tmp_path / "raw")
    assert (told["rows"], told["kept"], told["joined_rows"]) == (3, 3, 13)
    assert run("table", tmp_path / "t.csv", *flags, "--output", tmp_path / "raw") == 0
    assert summary(tmp_path / "raw")["joined_rows"] == 13, "also of finished shards"


OWN = """
flickr30k: {title: Flickr30K, home: '', licence: own, format: table, url_column: image, caption_column: comment,
  captions: human, rows: 0, expected_yield: 1.0}
table: {title: mine, home: '', licence: own, format: table, url_column: file, caption_column: words, captions: web,
  rows: 0, expected_yield: 1.0}
"""


def test_ones_own_sources_are_added_and_replace(tmp_path, pictures, capsys):
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "t.csv").write_text("image,comment\n0.jpg,a caption\n")
    flags = ("--images", pictures, "--sources", tmp_path / "own.yaml")
    assert run("flickr30k", tmp_path / "t.csv", *flags, "--output", tmp_path / "raw") == 0
    [tar] = finished_shards(tmp_path / "raw")
    assert tar.name == "flickr30k-000-000000.tar" and receipt_path(tar).exists()
    record = samples(tmp_path / "raw")[0].record
    assert (record["source"], record["sources"]) == ("flickr30k", ["human"])
    assert run("table", tmp_path / "t.csv", *flags, "--output", tmp_path / "b") == 1
    told = "has no column 'file'; its columns are image, comment; give, for example, --url-column image\n"
    assert told in capsys.readouterr().err
    assert run("flickr30k", tmp_path / "t.csv", "--images", pictures, "--output", tmp_path / "b") == 1
    assert "'flickr30k': is not in sources.yaml; add yours with --sources FILE; use one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            OWN.replace("captions: human", "captions: both"),
            "source 'flickr30k': captions 'both': use one of human, web",
        ),
        ("- a", "is not a mapping of source names to entries"),
        ("a: [", "is not readable as YAML"),
        (None, "cannot be read (No such file or directory); name a file"),
    ],
)
def test_a_wrong_file_of_sources_is_one_line(tmp_path, capsys, content, message):
    if content:
        (tmp_path / "own.yaml").write_text(content)
    flags = ("--sources", tmp_path / "own.yaml", "--output", tmp_path / "raw")
    assert run("table", tmp_path / "t.csv", *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'own.yaml'}: ") and message in error and error.count("\n") == 1


def test_an_imagefolder_has_one_table(tmp_path, pictures, capsys):
    assert run("imagefolder", pictures, "--output", tmp_path / "raw") == 1
    assert "needs one of metadata.csv, metadata.jsonl, metadata.parquet, but has none" in capsys.readouterr().err
    (pictures / "metadata.csv").write_text("file_name,caption\n0.jpg,a cat\n")
    assert run("imagefolder", pictures, "--output", tmp_path / "raw") == 1
    error = capsys.readouterr().err
    assert "has no column 'text'" in error and error.endswith("; give, for example, --caption-column caption\n")
    assert run("imagefolder", pictures, "--output", tmp_path / "raw", "--caption-column", "caption") == 0
    assert captions(tmp_path / "raw") == [["a cat"]]


def test_a_plain_list_is_no_annotation_file_and_the_fix_is_named(tmp_path, pictures, capsys):
    (tmp_path / "list.json").write_text(json.dumps([{"image": "0.jpg", "caption": "a cat"}]))
    flags = ("--images", pictures, "--output", tmp_path / "raw")
    for source in ("coco_captions", "coco"):
        assert run(source, tmp_path / "list.json", *flags) == 1
        error = capsys.readouterr().err
        assert "is not an annotation file" in error and "give the source `table` with --caption-column" in error
    assert run("table", tmp_path / "list.json", *flags, "--url-column", "image", "--keep-where", "size>1") == 1
    assert (
        "has no column 'size'; its columns are image, caption; give, for example, --keep-where"
        in capsys.readouterr().err
    )
    assert run("table", tmp_path / "list.json", *flags, "--url-column", "image") == 0
    assert captions(tmp_path / "raw") == [["a cat"]]
