"""A set of one's own as a file: JSON lines with a picture and a question or captions each, or COCO's caption file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.sets.captioned_images import check_not_nocaps
from eval.sets.official_files import SampleId, field_of, listed, read_json, read_json_lines

LINES = ".jsonl"


@dataclass(frozen=True)
class OwnLine:
    """One line, or one image of COCO's file. `place` says in messages where it stands."""

    place: str
    id: SampleId
    image: str
    question: str | None = None
    answers: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()


def is_lines(path: Path) -> bool:
    """Whether a file is a set of one's own as JSON lines: by its name."""
    return path.suffix.lower() == LINES


def own_lines(path: Path) -> list[OwnLine]:
    """All lines of a .jsonl, or all images of a .json in COCO's layout; each id once.

    Raises ValueError in one line, with the place in the file, for anything else.
    """
    if path.suffix.lower() not in (LINES, ".json"):
        raise ValueError(f"{path}: a set of your own is a .jsonl with one object a line, or COCO's captions_*.json")
    found: dict[SampleId, OwnLine] = {}
    for line in _of_lines(path) if is_lines(path) else _of_coco(path):
        if line.id in found:
            raise ValueError(f"{path}: id {line.id!r} occurs twice ({found[line.id].place}, {line.place}); change one")
        found[line.id] = line
    if not found:
        raise ValueError(f'{path}: has no line; write one object a line, such as {{"image": "a.jpg"}}')
    return list(found.values())


def questions_with_answers(path: Path) -> list[OwnLine]:
    """Lines to score answers against. Raises ValueError for a line without a question or without answers."""
    for line in (lines := own_lines(path)):
        asked_of(path, line)
        if not line.answers:
            raise ValueError(f"{path}: {line.place} has no answers, so nothing can be scored; add them to every line")
    return lines


def pictures_once(path: Path) -> list[OwnLine]:
    """All lines. Raises ValueError for a picture that comes twice: captions are scored by picture."""
    seen: dict[str, str] = {}
    for line in (lines := own_lines(path)):
        if line.image in seen:
            raise ValueError(f"{path}: {line.place} has the picture of {seen[line.image]}; put all captions of a "
                             "picture on one line")  # fmt: skip
        seen[line.image] = line.place
    return lines


def images_with_captions(path: Path) -> list[OwnLine]:
    """Lines to score captions against. Raises ValueError for one without captions."""
    for line in (lines := pictures_once(path)):
        if not line.captions:
            raise ValueError(f"{path}: {line.place} has no captions, so nothing can be scored; add them to every line")
    return lines


def asked_of(path: Path, line: OwnLine) -> str:
    """The question. Raises ValueError where there is none."""
    if line.question is None:
        raise ValueError(f"{path}: {line.place} has no question; add it, or choose another task")
    return line.question


def _of_lines(path: Path) -> Iterator[OwnLine]:
    """An id is that of its line or, if no line has one, the line's number."""
    first: tuple[str, bool] | None = None
    for number, content in read_json_lines(path):
        place, has_id = f"line {number}", "id" in content
        first = first or (place, has_id)
        if has_id != first[1]:
            raise ValueError(f"{path}: an id on {place if has_id else first[0]}, none on "
                             f"{first[0] if has_id else place}; give every line an id, or none")  # fmt: skip
        yield OwnLine(
            place,
            field_of(path, content, "id", (int, str), place) if has_id else number,
            field_of(path, content, "image", (str,), place),
            field_of(path, content, "question", (str,), place) if "question" in content else None,
            _texts(path, content, "answers", place),
            _texts(path, content, "captions", place),
        )


def _texts(path: Path, content: dict[str, Any], name: str, place: str) -> tuple[str, ...]:
    texts = field_of(path, content, name, (list,), place) if name in content else []
    if name in content and not (texts and all(isinstance(text, str) and text.strip() for text in texts)):
        raise ValueError(f"{path}: {place}: {name} is not a list of texts, one or more and none empty; correct it, or "
                         f"leave {name} out")  # fmt: skip
    return tuple(texts)


def _of_coco(path: Path) -> Iterator[OwnLine]:
    """COCO's {images: [{id, file_name}], annotations: [{image_id, caption}]}; without annotations there are no
    captions."""
    content = read_json(path)
    if isinstance(content, list):
        raise ValueError(f"{path}: is a JSON list; write its objects one a line, into a file that ends in .jsonl")
    check_not_nocaps(path, content, "give --task nocaps and the folder of NoCaps")
    images = listed(path, content, "images")
    captions: dict[SampleId, list[str]] = {field_of(path, image, "id", (int, str)): [] for image in images}
    for annotation in listed(path, content, "annotations") if "annotations" in content else ():
        image_id = field_of(path, annotation, "image_id", (int, str))
        if image_id not in captions:
            raise ValueError(
                f"{path}: a caption has image_id {image_id!r}, which is not in images; name the whole file"
            )
        captions[image_id].append(field_of(path, annotation, "caption", (str,)))
    for image in images:
        image_id, name = image["id"], field_of(path, image, "file_name", (str,))
        yield OwnLine(f"image {image_id!r}", image_id, name, captions=tuple(captions[image_id]))
