"""Print all recipe fields as a page: `python -m pipeline.config > pipeline/RECIPE.md`."""

import json
from typing import Any

from pipeline.command_line import Parser
from pipeline.config.sections import Recipe

HEAD = """# The fields of a recipe

A recipe is one YAML file: one run of one stage. `--set FIELD=VALUE` edits a field; an unknown field is an error.
`${oc.env:NAME,DEFAULT}` stands for a variable of the environment: MINIATURE, or one that begins with BLIP2_.
A run's files keep such references in fields that name a place, with the value of the run as the default.
A path or a folder's name may begin with `~`, the home folder.
This page is made by `python -m pipeline.config > pipeline/RECIPE.md` from the descriptions in `config/`.
"""
BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
NAMES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def _either(kinds: list[str]) -> str:
    return " or ".join([", ".join(kinds[:-1]), kinds[-1]])


def _type(schema: dict[str, Any]) -> str:
    """A field's type in words, from its JSON schema."""
    if "anyOf" in schema:
        return _either([_type(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return _either([f"`{value}`" for value in schema["enum"]])
    if "additionalProperties" in schema:
        return f"mapping (name: {_type(schema['additionalProperties'])})"
    if schema.get("format") == "path":
        return "path"
    if schema["type"] == "array":
        items = schema.get("prefixItems")
        return f"[{', '.join(_type(each) for each in items)}]" if items else "list of names"
    bounds = ", ".join(f"{word} {schema[key]}" for key, word in BOUNDS.items() if key in schema)
    return f"{NAMES[schema['type']]} {bounds}".rstrip()


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "must be set"
    value = schema["default"]
    return f"`{json.dumps(value)}`"


def _table(section: dict[str, Any], prefix: str) -> list[str]:
    """A row for each field that is no section itself; each must have a description."""
    lines = ["", "| field | type | default | meaning |", "|---|---|---|---|"]
    for name, schema in section["properties"].items():
        if "$ref" in str(schema):
            continue
        assert schema.get("description"), f"{prefix}{name}: write its description under the field in pipeline/config"
        cells = [f"`{prefix}{name}`", _type(schema), _default(schema, name in section.get("required", ())), ""]
        cells[-1] = " ".join(schema["description"].split())
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _sections(of: dict[str, Any], kinds: dict[str, Any], prefix: str = "") -> list[str]:
    """A chapter for each section within a section, and then for those within it."""
    lines = []
    for name, field in of["properties"].items():
        references = [each["$ref"] for each in (field, *field.get("anyOf", ())) if "$ref" in each]
        for section in (kinds[reference.rpartition("/")[2]] for reference in references):
            is_there = name in of.get("required", ()) or field.get("default") is not None
            lines += [
                "",
                f"## {prefix}{name}",
                " ".join(section["description"].split()) + ("" if is_there else " May be left out."),
                *_table(section, f"{prefix}{name}."),
                *_sections(section, kinds, f"{prefix}{name}."),
            ]
    return lines


def page() -> str:
    schema = Recipe.model_json_schema()
    lines = [HEAD, "## The run", *_table(schema, ""), *_sections(schema, schema["$defs"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    Parser(prog="python -m pipeline.config", description=__doc__).parse_args()
    print(page(), end="")


if __name__ == "__main__":
    main()
