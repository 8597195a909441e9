"""CapFilt on real (tiny, random) models: what it writes, that it repeats itself, and that it survives being killed."""

import hashlib
import io
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from data_prep import capfilt, verify
from data_prep.captioning import side_table
from data_prep.index import index_shards
from data_prep.shards import tar_files
from data_prep.shards.offsets import offset_table
from data_prep.shards.receipts import Receipt, finished_shards, read_receipt, receipt_path, write_receipt
from data_prep.shards.tar_files import Sample
from pipeline.data.manifest import load_manifest
from pipeline.files import PARTIAL_SUFFIX, sha256_of
from tests.support.tiny_captioning_models import save_tiny_blip, save_tiny_clip
from tests.support.tiny_shards import tiny_sample, write_tiny_shards


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_tiny_blip(folder / "blip")
    save_tiny_clip(folder / "clip")
    return folder


def capfilt_arguments(weights: Path, given: Path, output: Path, *more: str) -> list[str]:
    models = ["--captioner", str(weights / "blip"), "--ranker", str(weights / "clip"), "--device", "cpu"]
    return ["--input", str(given), "--output", str(output), *models, "--max-length", "10", *more]


def run(weights: Path, given: Path, output: Path, *more: str) -> int:
    return capfilt.main(capfilt_arguments(weights, given, output, *more))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_finished(tar: Path, samples: list[Sample]) -> None:
    totals = tar_files.write_shard(tar, samples)
    receipt = Receipt("download", "", "", totals.sha256, totals.bytes, totals.samples, totals.captions, 0)
    write_receipt(tar, receipt)


@pytest.fixture(scope="module")
def done(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/ with three shards, captioned/ made of them."""
    folder = tmp_path_factory.mktemp("done")
    write_tiny_shards(folder / "raw", 12, samples_per_shard=5)
    assert run(weights, folder / "raw", folder / "captioned") == 0
    return folder


def test_each_image_keeps_its_best_candidates_and_the_table_keeps_all(done: Path) -> None:
    tars = finished_shards(done / "captioned")
    assert [tar.name for tar in tars] == [tar.name for tar in finished_shards(done / "raw")]
    for tar in tars:
        raw = list(tar_files.read_samples(done / "raw" / tar.name))
        captioned, receipt = list(tar_files.read_samples(tar)), read_receipt(tar)
        assert receipt.stage == "capfilt" and receipt.input_sha256 == sha256_of(done / "raw" / tar.name)
        assert (receipt.samples, receipt.captions) == (
            len(raw),
            sum(len(each.record["captions"]) for each in captioned),
        )
        rows = side_table.read_side_table(tar)
        assert len(rows) == 11 * len(raw)
        for before, after in zip(raw, captioned, strict=True):
            assert after.jpeg == before.jpeg and after.record["url"] == before.record["url"]
            mine = [row for row in rows if row["key"] == after.key]
            assert [row["position"] for row in mine] == list(range(11))
            assert [mine[0]["caption"]] == before.record["captions"] and mine[0]["source"] == "web"
            best = sorted((row for row in mine if row["kept"]), key=lambda row: (-row["score"], row["position"]))
            assert 1 <= len(best) <= 2
            for name, column in (("captions", "caption"), ("scores", "score"), ("sources", "source")):
                assert after.record[name] == [row[column] for row in best]
            outranked = [row["score"] for row in mine if row["reason"] == "outranked"]
            assert not outranked or max(outranked) <= min(row["score"] for row in best)


def test_the_result_is_sound_to_index_and_verify(done: Path) -> None:
    index_shards([done / "captioned"], done / "train.json")
    assert list(verify.find_faults(load_manifest(done / "train.json"), decode=True)) == []


def test_batches_threads_and_tasks_change_no_byte(done: Path, weights: Path, tmp_path: Path) -> None:
    for number, more in enumerate((["--batch-size", "3"], ["--batch-size", "1", "--decode-threads", "1"])):
        assert run(weights, done / "raw", tmp_path / str(number), *more) == 0
        assert contents(tmp_path / str(number)) == contents(done / "captioned")
    for index in ("1", "0"):
        assert run(weights, done / "raw", tmp_path / "tasks", "--task-index", index, "--task-count", "2") == 0
    assert contents(tmp_path / "tasks") == contents(done / "captioned")


def test_finished_shards_are_skipped_and_others_redone(done: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "captioned"
    folder.mkdir()
    for name, content in contents(done / "captioned").items():
        (folder / name).write_bytes(content)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(weights, done / "raw", folder) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    first, second, third = finished_shards(folder)
    receipt_path(first).unlink()
    receipt_path(second).write_text("{")
    third.unlink()
    (folder / f".{first.name}.abc{PARTIAL_SUFFIX}").write_text("half")
    assert run(weights, done / "raw", folder) == 0
    assert contents(folder) == contents(done / "captioned")
    assert run(weights, done / "raw", folder, "--seed", "1") == 0
    assert contents(folder).keys() == contents(done / "captioned").keys()
    assert read_receipt(first) != read_receipt(done / "captioned" / first.name)


def test_selecting_again_equals_a_run_with_those_settings(done: Path, weights: Path, tmp_path: Path) -> None:
    assert run(weights, done / "raw", tmp_path / "full", "--top-k", "4") == 0
    assert run(weights, done / "raw", tmp_path / "again", "--top-k", "1", "--min-score", "0.9") == 0
    again = ["--input", str(done / "raw"), "--output", str(tmp_path / "again"), "--reselect", "--top-k", "4"]
    assert capfilt.main(again) == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "full") != contents(done / "captioned")


def test_a_side_table_of_other_input_is_not_selected_from(
    done: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same URLs downloaded anew with other captions: the same keys, another tar."""
    shutil.copytree(done / "captioned", tmp_path / "captioned")
    for tar in finished_shards(done / "raw"):
        samples = list(tar_files.read_samples(tar))
        renewed = [each._replace(record=each.record | {"captions": ["words of a new table"]}) for each in samples]
        write_finished(tmp_path / "raw" / tar.name, renewed)
    capsys.readouterr()
    again = ["--input", str(tmp_path / "raw"), "--output", str(tmp_path / "captioned"), "--reselect", "--top-k", "11"]
    assert capfilt.main(again) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "candidates.parquet: was made from an input shard" in lines[0]
    assert contents(tmp_path / "captioned") == contents(done / "captioned")
    assert run(weights, tmp_path / "raw", tmp_path / "captioned") == 0
    assert capfilt.main(again) == 0
    kept = [each.record for tar in finished_shards(tmp_path / "captioned") for each in tar_files.read_samples(tar)]
    assert all("words of a new table" in record["captions"] for record in kept)


def test_stored_scores_are_those_of_transformers_clip_padded_to_77(done: Path, weights: Path) -> None:
    model, processor = (
        CLIPModel.from_pretrained(weights / "clip").eval(),
        CLIPProcessor.from_pretrained(weights / "clip"),
    )
    for tar in finished_shards(done / "captioned"):
        rows = [row for row in side_table.read_side_table(tar) if row["score"] is not None]
        for sample in tar_files.read_samples(tar):
            mine = [row for row in rows if row["key"] == sample.key]
            with Image.open(io.BytesIO(sample.jpeg)) as picture, torch.inference_mode():
                inputs = processor(
                    text=[row["caption"] for row in mine],
                    images=picture.convert("RGB"),
                    padding="max_length",
                    truncation=True,
                    max_length=77,
                    return_tensors="pt",
                )
                expected = model(**inputs).logits_per_image[0] / model.logit_scale.exp()
            torch.testing.assert_close(torch.tensor([row["score"] for row in mine]), expected, atol=1e-5, rtol=0)


def test_human_captions_pass_and_spoilt_pictures_are_counted(weights: Path, tmp_path: Path) -> None:
    human, web = tiny_sample(0, 0, 5, "human", "tiny"), tiny_sample(1, 0, 1, "web", "tiny")
    junk = web.jpeg[:200]
    spoilt = Sample("tiny_b", junk, web.record | {"key": "tiny_b", "sha256": hashlib.sha256(junk).hexdigest()})
    tar = tmp_path / "captioned" / "tiny-000-000000.tar"
    write_finished(tmp_path / "raw" / tar.name, [spoilt, human, web])
    assert run(weights, tmp_path / "raw", tmp_path / "captioned") == 0
    kept = list(tar_files.read_samples(tar))
    assert kept[0] == human and [sample.key for sample in kept] == [human.key, web.key]
    assert read_receipt(tar).dropped == {"undecodable_picture": 1}
    assert run(weights, tmp_path / "raw", tmp_path / "captioned", "--min-score", "2") == 0
    assert read_receipt(tar).dropped == {"no_caption_survived": 1, "undecodable_picture": 1}
    assert list(tar_files.read_samples(tar)) == [human]


def test_a_damaged_shard_is_named_and_the_others_are_done(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = write_tiny_shards(tmp_path / "raw", 6, samples_per_shard=2)
    content = bytearray(tars[1].read_bytes())
    content[int(offset_table(tars[1])[0, 2]) + 12] ^= 1  # in the JSON, which has no sha256 of its own
    tars[1].write_bytes(content)
    assert run(weights, tmp_path / "raw", tmp_path / "captioned") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "1 of 3 shards" in lines[0] and tars[1].name in lines[0]
    assert [tar.name for tar in finished_shards(tmp_path / "captioned")] == [tars[0].name, tars[2].name]


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["--input", "{}/nothing"], 1, "is not a folder"),
        (["--input", "{}/empty"], 1, "has no finished shard"),
        (["--output", "{}/raw"], 1, "is also the --input folder"),
        (["--input", "{}/captioned", "--output", "{}/twice"], 1, "is captioned already"),
        (["--task-index", "2", "--task-count", "2"], 1, "--task-index 2"),
        (["--captioner", "{}/nothing"], 1, "--captioner"),
        (["--top-p", "1.5"], 1, "--top-p 1.5"),
        (["--top-k", "0"], 2, "--top-k: '0'"),
        (["--min-score", "nan"], 1, "--min-score nan"),
        (["--lease-s", "nan"], 2, "--lease-s nan"),
        (["--repetition-penalty", "inf"], 1, "--repetition-penalty inf"),
        (["--device", "gpu"], 1, "--device gpu"),
        (["--device", "cuda:99"], 1, "--device cuda:99"),
        (["--batch-size", "none"], 2, "--batch-size"),
        (["--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_wrong_use_is_one_line(
    done: Path, weights: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, reason: str
) -> None:
    (done / "empty").mkdir(exist_ok=True)
    more = [each.replace("{}", str(done)) for each in more]
    try:
        found = run(weights, done / "raw", done / "captioned", *more)
    except SystemExit as stop:
        found = int(str(stop.code))
    lines = capsys.readouterr().err.splitlines()
    assert found == code and len(lines) == 1 and reason in lines[0]


def test_a_signal_stops_it_with_75_and_nothing_half_done(weights: Path, tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "raw", 2000, samples_per_shard=1000)
    arguments = capfilt_arguments(weights, tmp_path / "raw", tmp_path / "captioned")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.capfilt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list((tmp_path / "captioned").glob("*.lease")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # into the work: between taking the lease and holding it, a stop leaves it for others to steal
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and len(errors.splitlines()) == 1 and "SIGTERM" in errors
    assert list((tmp_path / "captioned").iterdir()) == []
