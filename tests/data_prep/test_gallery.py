"""The gallery is one file that asks nothing of anyone, runs nothing, and shows what the shards hold."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import gallery
from data_prep.captioning.selection import Candidate, select
from data_prep.captioning.side_table import write_side_table
from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.receipts import Receipt, write_receipt
from data_prep.shards.tar_files import Sample
from tests.support.tiny_shards import tiny_manifest, tiny_sample, write_tiny_shards

HOSTILE = (
    '</q><script>alert("x")</script><img src=http://evil.invalid/a.png onerror=alert(1)> & "dog" '
    '"onload="x" {{7*7}} {% raw %}'
)


class Page(HTMLParser):
    """Tags with attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """A manifest over one captioned shard whose captions are hostile, one of human captions, and a ledger."""
    tar = tmp_path / "captioned" / "tiny-000-000000.tar"
    samples, verdicts = [], {}
    for number in range(6):
        sample = tiny_sample(number, 0, 1, "web", "tiny")
        found = [
            Candidate(0, HOSTILE, "web", 0.1),
            Candidate(1, f"a caption number {number}", "synthetic", 0.3),
            Candidate(2, "short", "synthetic", 0.2),
            Candidate(3, "an outranked caption", "synthetic", 0.05),
        ]
        verdicts[sample.key] = select(found, 2)
        record = {"captions": [found[1].caption, HOSTILE], "scores": [0.3, 0.1], "sources": ["synthetic", "web"]}
        samples.append(Sample(sample.key, sample.jpeg, sample.record | record))
    totals = tar_files.write_shard(tar, samples)
    write_side_table(tar, verdicts, {}, "")
    dropped = {"no_caption_survived": 3}
    receipt = Receipt("capfilt", "", "", totals.sha256, totals.bytes, totals.samples, totals.captions, 0, {}, dropped)
    write_receipt(tar, receipt)
    ledger = {
        "url": ["http://a.invalid/1", "http://a.invalid/2"],
        "status": ["kept", "dropped"],
        "reason": ["", "http_404"],
    }
    pq.write_table(pa.table(ledger), tmp_path / "captioned" / "tiny-000-000000.ledger.parquet")
    index_shards([tmp_path / "captioned"], tmp_path / "train.json")
    return tmp_path


def test_the_page_is_self_contained_and_harmless(captioned: Path) -> None:
    output, ledger = captioned / "page.html", str(captioned / "captioned")
    assert gallery.main([str(captioned / "train.json"), "--output", str(output), "--ledger", ledger]) == 0
    page = Page(output)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "action", "srcset", "data"):
            assert (attributes.get(name) or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert tag != "meta" or attributes.get("http-equiv") != "refresh"
    style = re.search("<style>(.*?)</style>", output.read_text(), re.S)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]


def test_it_shows_pictures_captions_scores_and_reasons(captioned: Path) -> None:
    output = captioned / "page.html"
    arguments = ["--output", str(output), "--samples", "4", "--ledger", str(captioned / "captioned")]
    assert gallery.main([str(captioned / "train.json"), *arguments]) == 0
    page = Page(output)
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    assert page.text.count(HOSTILE) == 8  # as web caption and as kept caption
    assert page.text.count("an outranked caption") == 4 and page.text.count("short") >= 4
    for expected in ("a caption number", "0.300", "outranked", "too short", "no caption survived", "http 404"):
        assert expected in page.text
    assert "6pictures" in page.text and "12captions" in page.text and "3pictures dropped" in page.text
    assert "a.invalid (50% kept)" in page.text


def test_the_same_seed_gives_the_same_page_and_another_other_pictures(tmp_path: Path) -> None:
    manifest, pages = tiny_manifest(tmp_path, 40), []
    for seed in ("0", "0", "1"):
        assert (
            gallery.main([str(manifest), "--output", str(tmp_path / "a.html"), "--seed", seed, "--samples", "5"]) == 0
        )
        pages.append((tmp_path / "a.html").read_text())
    assert pages[0] == pages[1] != pages[2]


def test_faults_are_one_line(captioned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(captioned / "page.html")]
    (captioned / "empty").mkdir()
    assert gallery.main([str(captioned / "nothing.json"), *output]) == 1
    assert gallery.main([str(captioned / "train.json"), *output, "--ledger", str(captioned / "empty")]) == 1
    (captioned / "captioned" / "tiny-000-000000.tar").unlink()
    assert gallery.main([str(captioned / "train.json"), *output]) == 1
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["error:"] * 3


def test_counts_below_one_and_pictures_of_no_height_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tar,) = write_tiny_shards(tmp_path / "web", 1)
    index_shards([tmp_path / "web"], tmp_path / "train.json")
    tar.write_bytes(re.sub(rb'"height":\d\d', b'"height":-5', tar.read_bytes()))
    arguments = [str(tmp_path / "train.json"), "--output", str(tmp_path / "page.html")]
    with pytest.raises(SystemExit):
        gallery.main([*arguments, "--samples", "-3"])
    assert "'-3' is not a whole number above 0" in capsys.readouterr().err
    assert gallery.main(arguments) == 1
    assert f"{tar}: the JSON at byte" in capsys.readouterr().err


def test_what_shards_without_samples_dropped_is_shown(captioned: Path) -> None:
    tar = captioned / "captioned" / "cc3m-000-000000.tar"
    totals = tar_files.write_shard(tar, [])
    receipt = Receipt("capfilt", "", "", totals.sha256, totals.bytes, 0, 0, 0, {}, {"undecodable_picture": 40})
    write_receipt(tar, receipt)
    index_shards([captioned / "captioned"], captioned / "train.json")
    assert gallery.main([str(captioned / "train.json"), "--output", str(captioned / "page.html")]) == 0
    text = Page(captioned / "page.html").text
    assert "43pictures dropped" in text and "undecodable picture" in text and "Dropped pictures by source" in text
