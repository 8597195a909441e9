"""Fields of a recipe that name a place on this machine: a place may change when folders move, and its content not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.reading import edited, parse_recipe
from pipeline.config.references import FILES, TOWERS, of_today, places_in
from pipeline.config.sections import Recipe

KINDS = ("local-dir:", "transformers:")
"""What stands before the folder of an image encoder."""
PRECISION = "language.precision"
"""May change with the places: it says how trained weights are used, not what they are."""


def absolute_place(field: str, value: Any) -> Any:
    """The same place, whatever the current folder is. A name is a folder where there is one, else of a hub."""
    if not isinstance(value, str):
        return value
    if field in FILES:
        return str(Path(value).absolute())
    kind = next((kind for kind in KINDS if value.startswith(kind)), "")
    folder = Path(value.removeprefix(kind))
    return f"{kind}{folder.absolute()}" if folder.is_dir() else value


def is_same_place(field: str, one: Any, other: Any) -> bool:
    """Whether two values are equal, or would be with absolute paths; earlier versions kept relative ones."""
    if one == other:
        return True
    return field in (*TOWERS, *FILES) and absolute_place(field, one) == absolute_place(field, other)


def with_absolute_places(recipe: Recipe) -> Recipe:
    """The recipe as a run keeps it: relative paths begin at the current folder, where the run began."""
    content = recipe.model_dump(mode="json")
    for field, section, name in places_in(content):
        section[name] = absolute_place(field, section[name])
    return parse_recipe(content).referring(recipe.references)


def in_environment(recipe: Recipe) -> Recipe:
    """The recipe with its towers where their variables say today. They have fingerprints; files stay what they were.

    Raises ValueError in one line for a place that no recipe may have.
    """
    content = recipe.model_dump(mode="json")
    for field, section, name in places_in(content, TOWERS):
        if field in recipe.references and (place := of_today(recipe.references[field])):
            section[name] = absolute_place(field, place)
    return parse_recipe(content).referring(recipe.references)


def moved(recipe: Recipe, edits: Sequence[str]) -> Recipe:
    """A recipe that is kept with weights, with new places and precision. Raises ValueError for any other edit."""
    check_places(edits)
    return edited(recipe, edits)


def check_places(edits: Sequence[str]) -> None:
    """Raises ValueError for an edit of anything else than a place, or the language model's precision."""
    for item in edits:
        field = item.partition("=")[0]
        if field not in (*TOWERS, *FILES, PRECISION):
            raise ValueError(
                f"--set {item}: these weights hold their own recipe, of which only places and the language model's "
                f"precision may change: {', '.join((*TOWERS, *FILES, PRECISION))}"
            )
