"""The card of a data set: counts by source, licences, drops; foreign text is text, and no other page is replaced."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from data_prep.index import main
from data_prep.shards.receipts import CAPTIONED
from data_prep.tables.sources import known_sources
from data_prep.viewing.data_card import MARK, data_card
from pipeline.data.manifest import load_manifest
from tests.support.tiny_shards import write_tiny_shards


def index(folder: Path, *more: object) -> int:
    folders = [folder / "coco", folder / "web"]
    return main([str(each) for each in (*folders, "--output", folder / "all.json", *more)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_shards(tmp_path / "coco", 3, captions_per_sample=5, caption_source="human", source="coco")
    write_tiny_shards(tmp_path / "web", 4, seed=1)
    return tmp_path


def test_a_card_has_counts_and_licences_by_source(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert index(folder, "--card", folder / "README.md") == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "all.json")
    card = DatasetCard.load(folder / "README.md")
    assert card.data.size_categories == ["n<1K"] and card.data.task_categories == ["image-to-text"]
    assert card.data.license == "other" and card.data.pretty_name == "all"
    rows = [line for line in card.text.splitlines() if line.startswith("| coco")]
    assert len(rows) == 1 and "| 3 | 15 | 0 | annotations CC BY 4\\.0" in rows[0]
    assert "| tiny |  | 4 | 4 | 0 | not known here; ask its owner |" in card.text
    assert "belong to their owners" in card.text
    assert index(folder, "--card", folder / "README.md") == 0  # a card is replaced


def test_a_card_knows_the_users_own_sources(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = "{title: My drawings, home: https://a.org, licence: CC0, format: tars, captions: web, rows: 0, "
    entry += "expected_yield: 1}"
    (folder / "mine.yaml").write_text(f"tiny: {entry}\ncoco: {entry}\n")
    card = ("--card", folder / "README.md", "--sources")
    assert index(folder, *card, folder / "mine.yaml") == 0
    text = (folder / "README.md").read_text()
    assert "| tiny | My drawings | 4 | 4 | 0 | CC0 |" in text and "| coco | My drawings | 3 | 15 | 0 | CC0 |" in text
    (folder / "all.json").unlink()
    with pytest.raises(SystemExit):
        index(folder, "--sources", folder / "mine.yaml")
    assert "--sources: is for the card; give --card too" in capsys.readouterr().err
    assert index(folder, *card, folder / "none.yaml") == 1
    assert (
        "none.yaml: cannot be read (No such file or directory); name a file" in capsys.readouterr().err
        and not (folder / "all.json").exists()
    )


def test_a_page_that_is_no_card_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text("mine")
    assert index(folder, "--card", folder / "README.md") == 1
    assert "exists and is not a card" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine" and not (folder / "all.json").exists()
    assert index(folder, "--card", folder / "all.json") == 1
    assert "must end in .md" in capsys.readouterr().err


def test_names_from_a_manifest_are_escaped(folder: Path) -> None:
    assert index(folder) == 0
    [shard, *_] = load_manifest(folder / "all.json").shards
    told = {"dropped": {"<b>|x": 3}, "cleaned_of": {"[a](b)": 1}, "question_sets": {"# s": 2}, "stage": "capfilt",
            "models": {"captioner": "<i>"}}  # fmt: skip
    hostile = replace(shard, source="<script>", provenance=told)
    text = data_card("a: b\n---\n# c", [hostile], {})
    card: Any = DatasetCard(text)
    assert card.data.pretty_name == "a: b --- # c"
    assert MARK in text
    shown = text.split("---\n", 2)[2].replace(MARK, "")
    assert "script" in shown and not re.search(r"(?<!\\)[<\[\]]|^# [sc]$", shown, re.MULTILINE)
    assert "| \\<script\\> | \\<b\\>\\|x | 3 |" in text


def test_a_card_says_what_became_of_captions_and_questions(folder: Path) -> None:
    """What the last step dropped, of which evaluations the data are free, and which models made the captions."""
    assert index(folder) == 0
    coco, web = load_manifest(folder / "all.json").shards
    models = {"captioner": "c" * 64, "ranker": "a" * 64}
    captioned = replace(web, source="laion400m", provenance={"stage": CAPTIONED, "models": models})
    told = {
        "dropped": {"missing_file": 2},
        "cleaned_of": {"coco_karpathy_val": 5},
        "question_sets": {"vqav2_val2014": 3},
    }
    asked = replace(coco, questions=7, provenance=told)
    text = data_card("mine", [captioned, replace(captioned, path="b.tar"), asked], known_sources(None)).replace(
        "\\", ""
    )
    card: Any = DatasetCard(text)
    assert card.data.task_categories == ["visual-question-answering"]
    assert "- 8 pictures went through CapFilt: web captions and those of a captioner, ranked and chosen;" in text
    assert f"captioner {'c' * 12}, ranker {'a' * 12}" in text
    assert "- Question sets: vqav2_val2014 (3)" in text
    assert "| coco | missing_file | 2 |" in text and "- coco has no picture of coco_karpathy_val" in text
    assert "went through CapFilt do not say what their download dropped: its ledgers do." in text
    plain = data_card("mine", [replace(coco, provenance={})], {})
    assert "As their sources have them." in plain and "Nothing by the last step." in plain and "CapFilt" not in plain


@pytest.mark.parametrize(
    ("samples", "size"), [(999, "n<1K"), (1_000, "1K<n<10K"), (129_000_000, "100M<n<1B"), (10**9, "1B<n<10B")]
)
def test_the_size_is_one_of_the_hubs(samples: int, size: str, folder: Path) -> None:
    assert index(folder) == 0
    [shard, *_] = load_manifest(folder / "all.json").shards
    card: Any = DatasetCard(data_card("mine", [replace(shard, samples=samples)], {}))
    assert card.data.size_categories == [size]
