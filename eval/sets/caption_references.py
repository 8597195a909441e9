"""Reference captions by image, from COCO-format annotations (NoCaps too), Karpathy's or LAVIS' files, or JSON
lines."""

from dataclasses import dataclass
from pathlib import Path

from eval.sets.captioned_images import captioned_images, check_not_nocaps, is_captioned_images
from eval.sets.official_files import SampleId, field_of, listed, read_json
from eval.sets.own_lines import images_with_captions, is_lines


@dataclass(frozen=True)
class CaptionReferences:
    """Reference captions by image, in the file's order, and each image's domain where the file has one (NoCaps)."""

    captions: dict[SampleId, list[str]]
    domains: dict[SampleId, str]


def read_caption_references(path: Path, split: str | None = None, *, of_nocaps: bool = False) -> CaptionReferences:
    """Every image's captions.

    Raises ValueError in one line for a file of another format, an image without a caption, or NoCaps' images where
    others are wanted.
    """
    if is_lines(path):
        if split is not None:
            raise ValueError(f"--split {split}: {path} has no splits; leave --split out")
        return CaptionReferences({line.id: list(line.captions) for line in images_with_captions(path)}, {})
    content = read_json(path)
    if not of_nocaps:
        check_not_nocaps(path, content, "score them as nocaps")
    if is_captioned_images(content):
        found = {image.id: list(image.captions) for image in captioned_images(path, content, split)[0]}
        references = CaptionReferences(found, {})
    elif split is not None:
        raise ValueError(f"--split {split}: {path} has no splits; leave --split out")
    else:
        references = _of_coco(path, content)
    bare = [image_id for image_id, captions in references.captions.items() if not captions]
    if bare:
        raise ValueError(f"{path}: image {bare[0]!r} has no caption; add one, or remove the image")
    return references


def _of_coco(path: Path, content: object) -> CaptionReferences:
    """{images: [{id, domain?}], annotations: [{image_id, caption}]}."""
    captions: dict[SampleId, list[str]] = {}
    domains: dict[SampleId, str] = {}
    for image in listed(path, content, "images"):
        image_id = field_of(path, image, "id", (int, str))
        if image_id in captions:
            raise ValueError(f"{path}: image id {image_id!r} occurs twice; remove one of them")
        captions[image_id] = []
        if "domain" in image:
            domains[image_id] = field_of(path, image, "domain", (str,))
    for annotation in listed(path, content, "annotations"):
        image_id = field_of(path, annotation, "image_id", (int, str))
        if image_id not in captions:
            raise ValueError(
                f"{path}: a caption has image_id {image_id!r}, which is not in images; name the whole file"
            )
        captions[image_id].append(field_of(path, annotation, "caption", (str,)))
    return CaptionReferences(captions, domains)
