"""What LAVIS's readers make of an export: every picture once, with its captions."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from data_prep import export_lavis, gallery
from data_prep.shards.tar_files import Sample, read_samples
from pipeline.files import PARTIAL_SUFFIX
from tests.support.tiny_shards import tiny_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_manifest(tmp_path_factory.mktemp("data"), 10, samples_per_shard=4)


@pytest.fixture(scope="module")
def samples(manifest: Path) -> dict[str, Sample]:
    return {sample.key: sample for tar in sorted(manifest.parent.glob("shards/*.tar")) for sample in read_samples(tar)}


def export(manifest: Path, output: Path, *more: str) -> int:
    return export_lavis.main([str(manifest), "--output", str(output), *more])


def read_as_lavis_does(storage: str, to_text: Callable[[object], object]) -> Iterator[tuple[Image.Image, object]]:
    """The stages that LAVIS's LaionDataset is made of: shards drawn without an end, pictures as PIL, JSON decoded."""
    stages = [wds.ResampledShards(storage), wds.tarfile_to_samples(), wds.decode("pilrgb"), wds.to_tuple("jpg", "json")]
    for image, content in wds.DataPipeline(*stages):
        yield image, to_text(content)


@pytest.mark.parametrize(
    ("layout", "to_text", "wanted"),
    [
        ("tar", lambda content: content["caption"], lambda captions: captions[0]),
        ("list", lambda content: content, lambda captions: captions),
    ],
)
def test_webdataset_builders_find_every_picture_with_its_caption(
    manifest: Path,
    samples: dict[str, Sample],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    layout: str,
    to_text: Callable[[object], object],
    wanted: Callable[[list[str]], object],
) -> None:
    assert export(manifest, tmp_path / "out", "--layout", layout) == 0
    storage = capsys.readouterr().out.splitlines()[-1]
    assert storage == f"{tmp_path / 'out'}/{{00000..00002}}.tar"
    found = {}
    for image, text in itertools.islice(read_as_lavis_does(storage, to_text), 400):
        found[image.convert("RGB").tobytes()] = text
    expected = {}
    for sample in samples.values():
        pixels = Image.open(io.BytesIO(sample.jpeg)).convert("RGB").tobytes()
        expected[pixels] = wanted(sample.record["captions"])
    assert found == expected


def test_folder_builders_find_an_entry_for_every_caption(
    manifest: Path, samples: dict[str, Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(manifest, tmp_path / "out", "--layout", "folder") == 0
    entries = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert len(entries) == sum(len(sample.record["captions"]) for sample in samples.values())
    for key, group in itertools.groupby(entries, lambda entry: entry["image_id"]):
        several = list(group)
        assert [entry["caption"] for entry in several] == samples[key].record["captions"]
        assert {(tmp_path / "out" / "images" / entry["image"]).read_bytes() for entry in several} == {samples[key].jpeg}


def test_an_export_goes_on_where_it_was_stopped_and_keeps_to_its_folder(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(manifest, tmp_path / "out") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "00001.tar").unlink()
    time = (tmp_path / "out" / "00000.tar").stat().st_mtime_ns
    assert export(manifest, tmp_path / "out") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert (tmp_path / "out" / "00000.tar").stat().st_mtime_ns == time
    capsys.readouterr()
    for more, reason in (
        (["--layout", "list"], "another layout"),
        (["--output", str(manifest.parent)], "is not empty"),
    ):
        assert export(manifest, tmp_path / "out", *more) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and reason in lines[0]


def test_what_a_killed_export_left_half_written_goes(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / f".export.json.1{PARTIAL_SUFFIX}").write_text("half")  # killed before anything else was there
    assert export(manifest, output) == 0
    whole = {path.name for path in output.iterdir()}
    assert whole == {"export.json", "00000.tar", "00001.tar", "00002.tar"}
    (output / "00002.tar").rename(output / f".00002.tar.2{PARTIAL_SUFFIX}")
    assert export(manifest, output) == 0
    assert {path.name for path in output.iterdir()} == whole


@pytest.mark.parametrize("command", ["export", "gallery"])
def test_a_spoilt_table_of_offsets_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every byte of its header flipped in turn, and places beyond the tar."""
    manifest = tiny_manifest(tmp_path, 3)
    (table,) = (tmp_path / "train.index").iterdir()
    good, outcomes = table.read_bytes(), Counter[int]()
    beyond = np.load(table)
    beyond[1, 3] = 1 << 50
    np.save(tmp_path / "beyond.npy", beyond)
    spoilt = [good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :] for place in range(0, 128, 3)]
    for number, content in enumerate([*spoilt, (tmp_path / "beyond.npy").read_bytes()]):
        table.write_bytes(content)
        capsys.readouterr()
        if command == "export":
            code = export(manifest, tmp_path / f"out{number}")
        else:
            code = gallery.main([str(manifest), "--output", str(tmp_path / "g.html")])
        lines = capsys.readouterr().err.splitlines()
        assert (code, len(lines)) in ((0, 0), (1, 1)) and all(str(table) in line or ".tar" in line for line in lines)
        outcomes[code] += 1
    assert code == 1 and outcomes[1] > 20
