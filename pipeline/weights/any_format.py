"""The whole model of weights in any of the three formats, for evaluation, and the sha256 of their files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.config import Recipe, check_places
from pipeline.files import sha256_of
from pipeline.weights import native

if TYPE_CHECKING:
    from pipeline.models.inference import LanguageModel, RetrievalModel

FOLDER_FILES = ("*.json", "*.safetensors")  # of a transformers folder


@dataclass(frozen=True)
class WeightsSource:
    """Weights at a path. LAVIS's file and transformers' folder need a recipe, which names their towers."""

    path: Path
    kind: Literal["native", "lavis", "huggingface"]
    files: tuple[Path, ...]
    recipe: Recipe | None
    places: tuple[str, ...] = ()  # of native weights: edits of their recipe, for folders that have moved

    def sha256(self) -> str:
        """Of the file's content; of a folder, over its files' names and contents. A recipe that is needed counts."""
        if self.kind == "native":
            return sha256_of(self.files[0])
        lines = [f"{file.name} {sha256_of(file)}" for file in self.files]
        assert self.recipe is not None
        decides = self.recipe.model_dump_json(include={"stage", "vision", "qformer", "language"})
        return hashlib.sha256("\n".join([*lines, decides]).encode()).hexdigest()

    def converted_from(self) -> str:
        """The format and place that native weights were converted from; empty for weights that were trained here."""
        return native.read_metadata(self.files[0]).get("converted_from", "") if self.kind == "native" else ""

    def step(self) -> int | None:
        """The training step that a checkpoint folder's name tells."""
        number = self.files[0].parent.name.removeprefix("step_")
        return int(number) if self.kind == "native" and number.isdecimal() else None


def find_weights(path: Path, recipe: Recipe | None, places: Sequence[str] = ()) -> WeightsSource:
    """The weights at `path`. Raises ValueError when there are none, or --recipe is missing or not needed.

    `places` are edits of the recipe that native weights hold; those of `recipe` are already in it.
    """
    if recipe is None:
        check_places(places)
    else:
        from pipeline.weights.huggingface import local_folder

        path = local_folder(path)
    if path.suffix in (".pth", ".pt") and path.is_file():
        kind: Literal["native", "lavis", "huggingface"] = "lavis"
        files: tuple[Path, ...] = (path,)
    elif (path / "config.json").is_file():
        kind, files = "huggingface", tuple(sorted(each for kind in FOLDER_FILES for each in path.glob(kind)))
    else:
        kind, files = "native", (native.weights_file(path),)
    if kind == "native" and recipe is not None:
        raise ValueError(f"--recipe: --weights {path} are native and hold their own recipe; remove --recipe")
    if kind != "native" and recipe is None:
        raise ValueError(f"--recipe: is missing, and --weights {path} ({kind}) do not name their towers; give a recipe")
    return WeightsSource(path, kind, files, recipe, tuple(places) if recipe is None else ())


def warning_of(source: WeightsSource, notes: list[str]) -> str:
    """The notes in one line, where they say that the weights' own image encoder is not used; else empty."""
    from pipeline.weights.foreign import LEFT_ENCODER

    left = sum(note.startswith(LEFT_ENCODER) for note in notes)
    if not left:
        return ""
    return (
        f"--weights {source.path}: {left} tensors of its image encoder are not used; the recipe's encoder is. For "
        "fine-tuned weights, give a recipe that trains it (vision.trained: true)"
    )


def load_any(source: WeightsSource, device: str) -> tuple["RetrievalModel | LanguageModel", list[str]]:
    """The model, and notes on what of the weights has no place. Raises ValueError when something does not fit."""
    if source.kind == "native":
        return native.load_model(source.files[0], device, source.places), []
    from pipeline.weights.foreign import read_foreign

    assert source.recipe is not None
    bridge, recipe, notes = read_foreign(source.path, source.kind, source.recipe, None)
    return native.inference_model(recipe, bridge, device), notes
