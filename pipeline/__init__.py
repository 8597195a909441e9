"""BLIP-2: `pipeline.load` gives a trained model. Importing this loads no other library."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.config import Recipe
    from pipeline.trained_model import Model


def load(weights: "str | Path", recipe: "str | Path | Recipe | None" = None, edits: "Sequence[str]" = ()) -> "Model":
    """A trained model, ready for pictures: `.caption`, `.answer` of stage 2, `.embed`, `.match` of stage 1.

    `weights` is a run or checkpoint folder, LAVIS's `.pth`, or a folder or hub id of transformers. The last three name
    no towers: `recipe`, a file, does; `edits` change its fields (`vision.precision=fp32`). Of a run, whose recipe is
    with its weights, they name new places (`vision.name=local-dir:FOLDER`). A GPU is used where there
    is one. Raises ValueError in one line for weights that cannot be used.
    """
    from pipeline.trained_model import load as load_model

    return load_model(weights, recipe, edits)
