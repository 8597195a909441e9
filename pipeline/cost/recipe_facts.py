"""`python -m pipeline.cost.recipe_facts`: what job scripts ask: a field's value, or how many nodes fit."""

import argparse
import sys
from pathlib import Path

from pipeline.command_line import Parser, one_line
from pipeline.config import Recipe, for_ranks, load_recipe


def field_value(recipe: Recipe, name: str) -> str:
    """The value of a dotted field; nothing for one that is not set. Raises ValueError when there is no such field."""
    value: object = recipe.model_dump(mode="json")
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"--field {name}: no such field; see pipeline/config.py for the fields there are")
        value = value[part]
    return "" if value is None else str(value)


def usable_nodes(recipe: Recipe, nodes: int, ranks_per_node: int, or_fewer: bool) -> int:
    """`nodes`, or the largest smaller number with which the batch identity holds. Raises ValueError when none does."""
    smallest = 1 if or_fewer else nodes
    for count in range(nodes, smallest - 1, -1):
        try:
            for_ranks(recipe, count * ranks_per_node)
        except ValueError:
            continue
        return count
    for_ranks(recipe, nodes * ranks_per_node)  # says which numbers do not fit
    raise AssertionError("a number of ranks was refused, and then not")


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="pipeline.cost.recipe_facts", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="edit the recipe")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--field", metavar="a.b", help="print this field's value")
    asked.add_argument("--nodes", type=int, metavar="N", help="print N if the batch can be split over N nodes")
    parser.add_argument("--or-fewer", action="store_true", help="else the largest smaller number")
    parser.add_argument("--ranks-per-node", type=int, default=1, metavar="G")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    try:
        recipe = load_recipe(arguments.recipe, arguments.set)
        if arguments.field:
            print(field_value(recipe, arguments.field))
        else:
            print(usable_nodes(recipe, arguments.nodes, arguments.ranks_per_node, arguments.or_fewer))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
