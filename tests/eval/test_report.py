"""The report: every number and sample in one file, nothing executable in it, nothing asked of a server."""

import json
import re
import shutil
import subprocess
import tarfile
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.report import main
from eval.reporting.training_curves import read_metrics
from eval.score import main as score

Folders = dict[str, Path]
NASTY = '<script>alert("1")</script>&amp; "onload="x" {{7*7}} {% raw %}'


class Page(HTMLParser):
    """Collects tags, what they refer to, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def evaluation(folder: Path, task: str, data: Path, annotations: Path, images: dict[Any, Path], **more: Any) -> Path:
    """A folder as eval.run leaves it, but for the predictions."""
    folder.mkdir()
    settings: dict[str, Any] = {
        "task": task,
        "weights_sha256": "ab" * 32,
        "annotations_sha256": "cd" * 32,
        "split": "test",
        "limit": "all",
        "image_source": "own",
        "data": str(data),
        "annotations": str(annotations),
        "data_set": {"vqa": "VQAv2 val", "nocaps": "NoCaps val", "retrieval": "Flickr30K test"}[task],
        "is_published_set": True,
        "vision": "local-dir:towers/vision",
        "language": None if task == "retrieval" else "towers/t5",
        "images": [[image_id, str(path)] for image_id, path in images.items()],
    }
    if task != "retrieval":
        settings |= {"prompt": NASTY, "num_beams": 5, "max_new_tokens": 9, "min_new_tokens": 1, "length_penalty": 1.0}
    (folder / "task.json").write_text(json.dumps(settings | more))
    return folder


def scored(folder: Path, task: str, predictions: Any, *more: object) -> Path:
    (folder / "predictions.json").write_text(json.dumps(predictions))
    files = ("--predictions", folder / "predictions.json", *more, "--output", folder / "metrics.json")
    assert score([task, *map(str, files), "--per-sample", str(folder / "per_sample.jsonl")]) == 0
    return folder


def scored_retrieval(folder: Path, data: Path) -> Path:
    """An evaluation of a gallery by random scores, scored."""
    from eval.sets.captioned import load_retrieval

    gallery = load_retrieval(data, "test")
    evaluation(folder, "retrieval", data, gallery.annotations, gallery.image_paths, k_test=4)
    itc = np.random.default_rng(0).random((len(gallery.image_paths), len(gallery.texts)))
    np.savez(folder / "scores.npz", itc=itc, itm=itc, text_image=np.array(gallery.text_image), k_test=4)
    files = ("--predictions", folder / "scores.npz", "--output", folder / "metrics.json")
    assert score(["retrieval", *map(str, files), "--per-sample", str(folder / "per_sample.jsonl")]) == 0
    return folder


@pytest.fixture
def vqa_folders(sets: Folders, tmp_path: Path) -> list[Path]:
    from eval.sets.question_sets import load_vqa

    data = load_vqa(sets["vqav2"], "val")
    answers = ("--annotations", sets["vqav2"] / "v2_mscoco_val2014_annotations.json", "--questions", data.annotations)
    folders = []
    for name, source, answer in (("vqa", "own", "no"), ("blind", "none", NASTY), ("other", "shuffled", "red")):
        folder = evaluation(
            tmp_path / name, "vqa", sets["vqav2"], data.annotations, data.image_paths, image_source=source, split="val"
        )
        predictions = [{"question_id": sample.id, "answer": answer} for sample in data.samples]
        folders.append(scored(folder, "vqa", predictions, *answers))
    return folders


def report(folders: list[Path], output: Path, *more: object) -> Page:
    assert main([*map(str, folders), "--output", str(output), *map(str, more)]) == 0
    return Page(output.read_text())


def test_no_two_rows_of_a_card_are_called_alike(vqa_folders: list[Path], tmp_path: Path) -> None:
    """Both rules give an accuracy of each subset."""
    report(vqa_folders, tmp_path / "report.html")
    [card] = re.findall('<article class="panel"><h3>.*?</article>', (tmp_path / "report.html").read_text(), re.DOTALL)
    labels = [re.sub("<.*?>", " ", each) for each in re.findall("<tr><th>(.*?)</th>", card, re.DOTALL)]
    labels = [each for each in labels if each.strip()]
    assert len(labels) == len(set(labels)) and sum("legacy rule" in each for each in labels) > 2, labels


def test_everything_lies_in_the_file_and_data_is_only_text(vqa_folders: list[Path], tmp_path: Path) -> None:
    page = report(vqa_folders, tmp_path / "report.html", "--title", NASTY)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags) and not page.handlers
    assert page.references and all(reference.startswith("data:image/jpeg;base64,") for reference in page.references)
    assert page.text.count(NASTY) >= 3  # title, prompt, the blind model's answers
    assert "default-src 'none'" in (tmp_path / "report.html").read_text()


def test_baselines_stand_beside_the_score_and_the_paper_is_not_comparable(
    vqa_folders: list[Path], tmp_path: Path
) -> None:
    report(vqa_folders, tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text()
    assert content.count("<h3>Visual question answering: VQAv2 val</h3>") == 1
    row = re.search(r"<th>Accuracy, legacy rule</th>(.*?)</tr>", content)
    assert row is not None
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row[1])]
    assert [cells[0], *cells[2:]] == ["50.0", "0.0", "10.0", "65.2 not comparable"]
    assert "not comparable" in content and "Without picture" in content and "Another picture" in content


def test_captions_retrieval_curves_and_summary(sets: Folders, tmp_path: Path) -> None:
    from eval.sets.captioned import load_nocaps, load_retrieval

    gallery = load_retrieval(sets["flickr30k"], "test")

    data = load_nocaps(sets["nocaps"], "val")
    nocaps = evaluation(tmp_path / "nocaps", "nocaps", sets["nocaps"], data.annotations, data.image_paths)
    captions = [{"image_id": sample.id, "caption": f"a red picture {NASTY}"} for sample in data.samples]
    scored(nocaps, "nocaps", captions, "--annotations", data.annotations)

    retrieval = scored_retrieval(tmp_path / "retrieval", sets["flickr30k"])
    run = tmp_path / "stage1"
    run.mkdir()
    lines: list[dict[str, Any]] = [
        {"step": step, "samples": 4 * step, "loss": 3.0 / step, "itc_loss": 1.0 / step} for step in range(1, 9)
    ]
    lines.append({"step": 8, "split": "validation", "loss": 0.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    (tmp_path / "summary.json").write_text(json.dumps({"seed": 7, "vqa": {"t5": {"accuracy": 48.25}}}))

    summary = ("--summary", tmp_path / "summary.json")
    page = report([nocaps, retrieval, run], tmp_path / "report.html", *summary)
    for wanted in ("48.25", "near-domain", "Best by CIDEr", "Chance", "Texts for an image", "loss (validation)"):
        assert wanted in page.text
    assert page.tags.count("polyline") == 2 and page.tags.count("circle") == 1
    assert gallery.texts[0] in page.text


@pytest.fixture
def wide_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of these few images too."""
    monkeypatch.setattr("eval.metrics.bootstrap.LEAST", 2)


SAYS_WIDTHS = """<script>addEventListener("load", () => { parent.document.title = JSON.stringify(
  [...document.querySelectorAll(".scores .panel")].map(panel => [panel.scrollWidth, panel.clientWidth])) })</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: nothing lays the page out")
@pytest.mark.parametrize("width", [390, 800, 1200, 1240, 1300])
def test_no_card_of_scores_is_cut(
    width: int, wide_intervals: None, vqa_folders: list[Path], sets: Folders, tmp_path: Path
) -> None:
    """As Chromium lays it out: the widest cards, with baselines and the paper beside three-digit intervals."""
    retrieval = scored_retrieval(tmp_path / "retrieval", sets["flickr30k"])
    report([retrieval, *vqa_folders], tmp_path / "report.html")
    page = re.sub("<meta http-equiv.*?>", SAYS_WIDTHS, (tmp_path / "report.html").read_text())
    framed = (
        f'<iframe width="{width}" height="900" srcdoc="{escape(page)}"></iframe>'  # windows are 500 px wide at least
    )
    (tmp_path / "watched.html").write_text(f"<title></title>{framed}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900", "--dump-dom"]
    command = ["chromium", *flags, f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/watched.html"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    widths = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])  # type: ignore[index]
    assert len(widths) == 2 and all(0 < needed <= there for needed, there in widths), widths


def test_what_was_not_scored_says_how_to(vqa_folders: list[Path], tmp_path: Path) -> None:
    (vqa_folders[0] / "per_sample.jsonl").unlink()
    assert "run eval.score with --per-sample" in report(vqa_folders[:1], tmp_path / "a.html").text
    (vqa_folders[0] / "metrics.json").unlink()
    assert "Not scored: run eval.score" in report(vqa_folders[:1], tmp_path / "b.html").text


def test_a_damaged_picture_is_said_in_its_place(vqa_folders: list[Path], tmp_path: Path) -> None:
    task = json.loads((vqa_folders[0] / "task.json").read_text())
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no")
    task["images"] = [[image_id, str(broken)] for image_id, _ in task["images"]]
    (vqa_folders[0] / "task.json").write_text(json.dumps(task))
    assert "picture not readable" in report(vqa_folders[:1], tmp_path / "report.html").text


def test_pictures_of_a_manifest_with_their_captions(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    from tests.support.tiny_shards import tiny_manifest

    manifest = tiny_manifest(tmp_path / "data", 6)
    tar = next((tmp_path / "data").rglob("*.tar"))
    with tarfile.open(tar) as opened:
        keys = [name.removesuffix(".json") for name in opened.getnames() if name.endswith(".json")]
    rows = [
        {"key": key, "position": 0, "caption": f"IMG {NASTY}", "source": "web", "score": -0.25, "kept": False,
         "reason": "outranked"}
        for key in keys
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tar.with_suffix(".candidates.parquet"))
    page = report([manifest], tmp_path / "report.html")
    assert page.tags.count("img") == 6
    assert page.text.count(f"IMG {NASTY}") == 6 and "-0.250" in page.text and "the colour is" in page.text


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "r.html")]) == 1
    error = capsys.readouterr().err
    assert "no task.json, metrics.jsonl or manifest" in error and error.count("\n") == 1


def test_nan_and_torn_lines_leave_the_rest_of_the_curve(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "los')
    assert read_metrics(tmp_path / "m.jsonl") == {"loss": [(1.0, 2.0)]}
