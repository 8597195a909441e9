"""What every section of a recipe is, and the types that its fields share."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
OneOrMore = Annotated[tuple[str, ...], BeforeValidator(lambda it: (it,) if isinstance(it, str) else it)]
HOME = re.compile(r"((?:local-dir:|transformers:)?)(~.*)", re.DOTALL)


def from_home(name: str) -> str:
    """The name; a folder that begins with `~` is one of the home, as a shell has it."""
    found = HOME.fullmatch(name)
    # unlike Path.expanduser, this leaves the name of an unknown user as it is
    return f"{found[1]}{os.path.expanduser(found[2])}" if found else name  # noqa: PTH111


Place = Annotated[str, AfterValidator(from_home)]
"""A hub id or a folder; of an image encoder also `local-dir:FOLDER` and the like."""

LARGEST = 2**53
"""Of an integer: a larger one is not exact as a float."""


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown field is an error. A path may begin with `~`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_bounds(cls, value: Any) -> Any:
        _check(value)
        return Path(from_home(str(value))) if isinstance(value, Path) else value


def _check(value: Any) -> None:
    """Raises ValueError for what no field may hold."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"must be from -{LARGEST} to {LARGEST}")
    if isinstance(value, str | Path) and "\0" in str(value):
        raise ValueError("holds a NUL character; remove it")
    if isinstance(value, list | tuple):
        for each in value:
            _check(each)
    elif isinstance(value, dict):
        for each in (*value, *value.values()):
            _check(each)
