"""Export a data set in a layout that LAVIS reads.

Layout `tar`: numbered tars of KEY.jpg and KEY.json with `{"caption": BEST, "captions": ALL}`, for LAVIS's webdataset
builders (laion2B_multi). Layout `list`: the same, but the JSON is a list of captions, best first. Layout `folder`:
images/ and annotations.json with one entry for each caption, for builders that read `image`, `caption` and `image_id`.
Only captions are exported. For questions, LAVIS reads its own vqa_train.json and vg_qa.json.
Finished files are kept: run the same command again to continue.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_prep.shards import tar_files
from data_prep.shards.offsets import checked_offsets
from data_prep.shards.tar_files import Sample
from data_prep.shards.ustar import BLOCK, HashingFile, write_member
from pipeline.command_line import Parser, finish, print_settings
from pipeline.data.manifest import Manifest, Shard, load_manifest
from pipeline.files import PARTIAL_SUFFIX, naming_full_disk, replace_file, replacing
from pipeline.progress_line import ProgressLine

STATE = "export.json"


def export(manifest: Manifest, output: Path, layout: str) -> str:
    """Write the data set in a layout; returns the `storage` for LAVIS's configuration.

    Raises ValueError when the data set has questions, `output` holds another export, or a shard differs from the
    manifest.
    """
    if manifest.questions:
        raise ValueError(
            f"{manifest.root}: has {manifest.questions} questions, and only captions can be exported; index the shards "
            "of captions alone"
        )
    state = json.dumps({"data": manifest.digest(), "layout": layout}) + "\n"
    path = output / STATE
    if path.exists() and path.read_text(encoding="utf-8") != state:
        raise ValueError(f"--output {output}: holds an export of other data or in another layout; name another folder")
    if not path.exists() and output.is_dir() and not all(map(_left_behind, output.iterdir())):
        raise ValueError(f"--output {output}: is not empty; name a new folder")
    for partial in [each for each in output.glob(".*") if _left_behind(each)]:
        partial.unlink()
    replace_file(path, state.encode())
    line = ProgressLine("exporting", manifest.samples, "pictures")
    if layout == "folder":
        with line:
            return _export_folder(manifest, output, line)
    text = _caption_object if layout == "tar" else _caption_list
    with line:
        for number, shard in enumerate(manifest.shards):
            tar = output / f"{number:05d}.tar"
            if tar.exists():
                line.skip(shard.samples)
            else:
                _write_tar(tar, _samples(manifest, shard, line), text)
    return f"{output}/{{00000..{len(manifest.shards) - 1:05d}}}.tar"


def _left_behind(path: Path) -> bool:
    """Whether this is a partial file of a killed export."""
    return path.name.startswith(".") and path.suffix == PARTIAL_SUFFIX and path.is_file()


def _samples(manifest: Manifest, shard: Shard, line: ProgressLine) -> Iterator[Sample]:
    tar = manifest.shard_path(shard)
    try:
        with tar.open("rb") as file:
            for offsets in checked_offsets(manifest, shard):
                sample = tar_files.read_at(file, tar, offsets)
                if not sample.record["captions"]:
                    raise ValueError(f"{tar}: sample {sample.key} has no caption; run data_prep.verify on the manifest")
                yield sample
                line.advance()
    except OSError as error:
        raise ValueError(f"{tar}: cannot be read ({error.strerror}); run data_prep.verify on the manifest") from error


def _write_tar(tar: Path, samples: Iterator[Sample], text: Callable[[list[str]], object]) -> None:
    with replacing(tar) as file:
        hashed = HashingFile(file)
        for key, jpeg, record in samples:
            write_member(hashed, f"{key}.jpg", jpeg)
            write_member(hashed, f"{key}.json", json.dumps(text(record["captions"])).encode())
        hashed.write(bytes(2 * BLOCK))


def _caption_object(captions: list[str]) -> object:
    # LAVIS's laion builder reads json["caption"], as its source shows.
    return {"caption": captions[0], "captions": captions}


def _caption_list(captions: list[str]) -> object:
    return captions


def _export_folder(manifest: Manifest, output: Path, line: ProgressLine) -> str:
    entries = []
    for number, shard in enumerate(manifest.shards):
        folder = Path("images", f"{number:05d}")
        (output / folder).mkdir(parents=True, exist_ok=True)
        for key, jpeg, record in _samples(manifest, shard, line):
            picture = output / folder / f"{key}.jpg"
            with naming_full_disk(picture):
                picture.write_bytes(jpeg)
            image = picture.relative_to(output / "images").as_posix()
            entries += [{"image": image, "caption": caption, "image_id": key} for caption in record["captions"]]
    replace_file(output / "annotations.json", (json.dumps(entries) + "\n").encode())
    return f"{output}/annotations.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.export_lavis", description=__doc__)
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a manifest of data_prep.index")
    parser.add_argument(
        "--output", metavar="DIR", required=True, type=Path, help="a new folder, or that of this export"
    )
    parser.add_argument(
        "--layout", choices=("tar", "list", "folder"), default="tar", help="see above (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        manifest = load_manifest(options.manifest)
        storage = export(manifest, options.output, options.layout)
        print(f"{len(manifest.shards)} shards, {manifest.samples} samples")
        print(storage)
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
