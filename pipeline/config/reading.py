"""A recipe from its YAML file and `--set` edits, checked; and back to YAML."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from pipeline.config.checks import check_trained_precision
from pipeline.config.references import from_environment, places_in, references_in, written
from pipeline.config.section import Section
from pipeline.config.sections import Recipe
from pipeline.files import UNKNOWN, clearest, nearest_field

FIELD_AND_VALUE = re.compile(r"\w+(\.\w+)*=.*", re.DOTALL)  # an item of --set


def for_ranks(recipe: Recipe, world_size: int) -> Recipe:
    """The recipe of a training, with its accumulation decided and the batch identity checked.

    Raises ValueError naming the numbers, or a precision that is for inference alone.
    """
    check_trained_precision(recipe)
    batch = recipe.batch
    # Stage 1's losses compare the pairs of one pass: another accumulation would be another run, so none is chosen.
    passes = 1 if recipe.stage == 1 and batch.accumulation is None else batch.num_passes(world_size)
    decided = batch.model_copy(update={"accumulation": passes})
    decided.check(world_size)
    return recipe.model_copy(update={"batch": decided})


def _one_line(error: ValidationError) -> str:
    """A fault of a validation, as `field value: what is wrong`."""
    fault = clearest(error)
    field = ".".join(str(part) for part in fault["loc"])
    value = "" if isinstance(fault["input"], dict | BaseModel) else f" {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == UNKNOWN:
        message = f"unknown field{nearest_field(Recipe, fault['loc'])}; pipeline/RECIPE.md lists the fields"
    if fault["type"] == "tuple_type":
        message = "is not a list; write [a, b]"
    return f"{field}{value}: {message}" if field else message


def defaults(section: type[Section] = Recipe) -> dict[str, Any]:
    """The defaults of a section's fields, as a recipe's dump has them; those of sections within it are nested."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        within = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in within if issubclass(kind, Section)]
        if sections:
            found[name] = defaults(sections[0])
        elif not field.is_required():
            found[name] = to_jsonable_python(field.get_default(call_default_factory=True))
    return found


def parse_recipe(content: dict[str, Any]) -> Recipe:
    """Validate a recipe's content. Raises ValueError with one line that names the field, its value and the fault."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"recipe: {_one_line(error)}") from error


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe, apply `a.b=v` overrides, validate. Raises ValueError with one line naming file and field."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        raise ValueError(
            f"recipe {path}: no such file; the recipes that come with the project are in pipeline/recipes/"
        )
    unreadable = (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError)
    try:
        settings = OmegaConf.load(path)
    except unreadable as error:
        raise ValueError(f"recipe {path}: is not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(settings, DictConfig):
        raise ValueError(f"recipe {path}: is not a mapping of fields; write `field: value` lines")
    content, raw = _resolved(settings, overrides, str(path))
    return parse_recipe(content).referring(
        references_in({field: section[name] for field, section, name in places_in(raw)})
    )


def edited(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with `a.b=v` overrides. Raises ValueError as `load_recipe` does.

    Only the overrides are resolved: a recipe that came with weights must not read the environment.
    """
    content = recipe.model_dump(mode="json")
    for item in overrides:
        _merge(content, _resolved({}, [item], f"--set {item}")[0])
    fields = {item.partition("=")[0] for item in overrides}
    return parse_recipe(content).referring({f: each for f, each in recipe.references.items() if f not in fields})


def _merge(content: dict[str, Any], edits: dict[str, Any]) -> None:
    for name, value in edits.items():
        if isinstance(value, dict) and isinstance(content.get(name), dict):
            _merge(content[name], value)
        else:
            content[name] = value


def _resolved(settings: Any, overrides: Sequence[str], told: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content with its overrides: with the values of references, and as it was written. Raises ValueError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    OmegaConf.register_resolver("oc.env", from_environment, replace=True)

    unreadable = (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError)
    for item in overrides:
        if not FIELD_AND_VALUE.fullmatch(item):
            raise ValueError(f"--set {item}: is not of the form FIELD=VALUE")
        try:
            settings = OmegaConf.merge(settings, OmegaConf.from_dotlist([item]))
        except unreadable as error:
            raise ValueError(f"--set {item}: is not readable as YAML ({str(error).splitlines()[0]})") from error
    try:
        contents = [cast(dict[Any, Any], OmegaConf.to_container(settings, resolve=each)) for each in (True, False)]
    except (OmegaConfBaseException, RecursionError) as error:
        fault = str(error).splitlines()[0].removeprefix("ValueError raised while resolving interpolation: ")
        raise ValueError(f"recipe {told}: a value cannot be resolved ({fault})") from error
    content, raw = ({str(key): value for key, value in each.items()} for each in contents)
    return content, raw


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every field spelled out; a length in epochs stays one, and so does a place's reference."""
    import yaml

    return yaml.safe_dump(written(recipe), sort_keys=False)
