"""`${oc.env:NAME}` in a recipe: the variables that it may name, and how files keep the reference beside its value."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pipeline.config.sections import Recipe

VARIABLES = ("MINIATURE",)
OWN_VARIABLES = "BLIP2_"
"""The variables of the environment that a recipe may use: others may hold secrets."""
TOWERS = ("vision.name", "qformer.bert", "language.name")
FILES = ("init_weights", "init_text_weights", "data.manifest", "validation.manifest", "run.output")
"""The fields that name a place. Only they keep references: any other value decides what a run computes."""
DEFAULT = r"(?:,'(?:[^'$\\]|\$(?!\{))*'|,[^'${}\\]*)?"
REFERENCE = re.compile(r"([^$\\]*)\$\{oc\.env:(\w+)" + DEFAULT + r"\}([^$\\]*)")  # before, name, after
ESCAPED = re.compile(r"(\\*)\$\{")  # for OmegaConf
UNSAFE = ("'", "\\", "${")
"""What has a meaning of its own within OmegaConf's quotes."""


def is_allowed(name: str) -> bool:
    return name in VARIABLES or name.startswith(OWN_VARIABLES)


def from_environment(name: str, default: Any = None) -> Any:
    """What `${oc.env:NAME,DEFAULT}` stands for. The value is written into recipes and weights, where others read it."""
    if not is_allowed(name):
        raise ValueError(f"${{oc.env:{name}}} is not allowed, only MINIATURE and BLIP2_...; write the value")
    value = os.environ.get(name, default)
    if value is None:
        raise ValueError(f"the environment variable {name} is not set")
    return value


def places_in(content: dict[str, Any], fields: Iterable[str] = (*TOWERS, *FILES)) -> Iterator[tuple[str, Any, str]]:
    """Of the places that a recipe's content has: the field, the section with it, and its name there."""
    for field in fields:
        *sections, name = field.split(".")
        section: Any = content
        for each in sections:
            section = section.get(each) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            yield field, section, name


def references_in(texts: dict[str, Any]) -> dict[str, str]:
    """Field -> its text without a default, of each place that has one reference, to a variable that is allowed."""
    found = {}
    for field in (*TOWERS, *FILES):
        parts = REFERENCE.fullmatch(str(texts.get(field)))
        if parts and is_allowed(parts[2]):
            found[field] = f"{parts[1]}${{oc.env:{parts[2]}}}{parts[3]}"
    return found


def written(recipe: Recipe) -> dict[str, Any]:
    """A recipe's content for OmegaConf: a reference has today's value as its default, any other `${` is escaped."""
    plain = recipe.as_written().model_dump(mode="json")
    values = {field: section[name] for field, section, name in places_in(plain)}
    content: dict[str, Any] = _escaped(plain)
    for field, section, name in places_in(content):
        parts = REFERENCE.fullmatch(recipe.references.get(field, ""))
        if parts and (text := values[field]).startswith(parts[1]) and text.removeprefix(parts[1]).endswith(parts[3]):
            value = text.removeprefix(parts[1]).removesuffix(parts[3])
            if not any(each in value for each in UNSAFE):
                section[name] = f"{parts[1]}${{oc.env:{parts[2]},'{value}'}}{parts[3]}"
    return content


def of_today(reference: str) -> str | None:
    """The text of a reference; None while its variable is not set, or empty. What it holds is read no further."""
    before, name, after = REFERENCE.fullmatch(reference).groups()  # type: ignore[union-attr]
    return f"{before}{os.environ[name]}{after}" if os.environ.get(name) else None


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _escaped(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return ESCAPED.sub(r"\1\1\\${", value) if isinstance(value, str) else value
