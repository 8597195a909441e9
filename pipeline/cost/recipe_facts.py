"""`python -m pipeline.cost.recipe_facts`: a recipe field's value, or a number of nodes that fits; for job scripts."""

import argparse
import sys
from pathlib import Path

from pipeline.command_line import Parser, finish
from pipeline.config import Recipe, for_ranks, load_recipe


def field_value(recipe: Recipe, name: str) -> str:
    """The value of a dotted field; empty when it is not set. Raises ValueError when there is no such field."""
    value: object = recipe.model_dump(mode="json")
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"--field {name}: no such field; pipeline/RECIPE.md lists the fields")
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
    for_ranks(recipe, nodes * ranks_per_node)  # raises, and names the numbers
    raise AssertionError("the number of ranks was refused above")


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m pipeline.cost.recipe_facts", description=__doc__)
    recipe = parser.add_argument_group("the recipe")
    recipe.add_argument("--recipe", type=Path, required=True, metavar="R.yaml", help="the recipe, a YAML file")
    recipe.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="change fields")
    question = parser.add_argument_group("the question (one of --field and --nodes)")
    asked = question.add_mutually_exclusive_group(required=True)
    asked.add_argument("--field", metavar="a.b", help="print the value of this field")
    asked.add_argument("--nodes", type=int, metavar="N", help="print N if the batch can be divided among N nodes")
    question.add_argument(
        "--or-fewer", action="store_true", help="otherwise print the largest smaller number that fits"
    )
    question.add_argument("--ranks-per-node", type=int, default=1, metavar="G", help="ranks on each node; default: 1")
    return parser.parse_args()


def main() -> int:
    options = _arguments()

    def work() -> None:
        recipe = load_recipe(options.recipe, options.set)
        if options.field:
            print(field_value(recipe, options.field))
        else:
            print(usable_nodes(recipe, options.nodes, options.ranks_per_node, options.or_fewer))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
