"""A set of one's own as samples with the paths of their pictures: `--data FILE` of eval.run; none is opened here."""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from eval.sets.captioned import retrieval_text
from eval.sets.captioned_images import DataSet
from eval.sets.official_files import SampleId
from eval.sets.own_lines import OwnLine, asked_of, images_with_captions, own_lines, pictures_once
from eval.sets.samples import RetrievalData, Sample, TaskData, check_length


def load_own_captioning(file: Path, images: Path | None, limit: int | None = None) -> TaskData:
    """One sample for each line; captions are not needed."""
    lines = pictures_once(file)[:limit]
    paths = {line.id: path for line, path in zip(lines, _pictures(file, images, lines), strict=True)}
    return TaskData(file, _named(file), paths, tuple(Sample(line.id, line.id) for line in lines))


def load_own_questions(file: Path, images: Path | None, limit: int | None = None) -> TaskData:
    """One sample for each line. The name of a picture is its id, so the questions about it share one."""
    lines = own_lines(file)[:limit]
    samples = [Sample(line.id, line.image, asked_of(file, line)) for line in lines]
    for sample in samples:
        check_length(file, sample)
    paths: dict[SampleId, Path] = {}
    for line, path in zip(lines, _pictures(file, images, lines), strict=True):
        paths[line.image] = path
    return TaskData(file, _named(file), paths, tuple(samples))


def load_own_retrieval(file: Path, images: Path | None, limit: int | None = None) -> RetrievalData:
    """All pictures and all their captions, cleaned as those of the published sets are."""
    lines = images_with_captions(file)[:limit]
    paths = {line.id: path for line, path in zip(lines, _pictures(file, images, lines), strict=True)}
    return own_gallery(file, paths, limit)


def own_gallery(file: Path, paths: Mapping[SampleId, Path], limit: int | None = None) -> RetrievalData:
    """The pictures at these paths, and their captions in the file."""
    lines = images_with_captions(file)[:limit]
    texts = [(row, retrieval_text(each)) for row, line in enumerate(lines) for each in line.captions]
    return RetrievalData(
        file, _named(file), dict(paths), tuple(text for _, text in texts), tuple(row for row, _ in texts)
    )


def _named(file: Path) -> DataSet:
    """The file's name, which no published set has: those have no ending."""
    return DataSet(file.name, False)


def _pictures(file: Path, images: Path | None, lines: list[OwnLine]) -> list[Path]:
    """The picture of each line, below the folder of `--image-folder`, else below the file's folder.

    Raises ValueError, naming the line, for a picture that is missing or outside that folder. A symlink may lead out of
    the folder only if it is that of the flag: a file from elsewhere can bring symlinks with it.
    """
    folder = images or file.parent
    inside = Path(os.path.realpath(folder))
    found: dict[str, Path] = {}
    for line in lines:
        if line.image in found:
            continue
        path, parts = folder / line.image, PurePosixPath(line.image)
        leaves = parts.is_absolute() or ".." in parts.parts or "\0" in line.image or "\\" in line.image
        if leaves or (images is None and not Path(os.path.realpath(path)).is_relative_to(inside)):
            raise ValueError(f"{file}: {line.place}: picture {line.image!r} is outside {folder}; correct its name, or "
                             "name the folder of all pictures with --image-folder")  # fmt: skip
        try:
            exists = path.is_file()
        except OSError as error:
            raise ValueError(f"{file}: {line.place}: picture {line.image!r:.80} cannot be looked for "
                             f"({error.strerror}); correct its name") from error  # fmt: skip
        if not exists:
            raise ValueError(f"{file}: {line.place}: picture {line.image!r} is not in {folder}; add it, or name the "
                             "folder of all pictures with --image-folder")  # fmt: skip
        found[line.image] = path
    return [found[line.image] for line in lines]
