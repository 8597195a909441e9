"""What job scripts ask of a recipe: the nodes that divide its batch, its fields, and one line for a mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Recipe, load_recipe
from pipeline.cost.recipe_facts import field_value, usable_nodes

ROOT = Path(__file__).parents[3]
STAGE2 = ROOT / "pipeline" / "recipes" / "stage2_vitg_opt2.7b.yaml"


def recipe_of(*edits: str) -> Recipe:
    return load_recipe(STAGE2, ["data.manifest=m", *edits])


@pytest.mark.parametrize("ranks_per_node", [1, 8])
def test_usable_nodes_are_the_most_that_divide_the_batch(ranks_per_node: int) -> None:
    recipe = recipe_of("batch.global_size=960", "batch.micro_size=10", "batch.accumulation=null")
    for nodes in range(1, 17):
        dividing = [count for count in range(1, nodes + 1) if 96 % (count * ranks_per_node) == 0]
        assert usable_nodes(recipe, nodes, ranks_per_node, or_fewer=True) == max(dividing)
        if nodes in dividing:
            assert usable_nodes(recipe, nodes, ranks_per_node, or_fewer=False) == nodes
        else:
            with pytest.raises(ValueError, match=r"batch: global_size 960 is not"):
                usable_nodes(recipe, nodes, ranks_per_node, or_fewer=False)


def test_with_its_accumulation_set_a_batch_fits_one_number_of_ranks_only() -> None:
    recipe = recipe_of("batch.global_size=960", "batch.micro_size=10", "batch.accumulation=6")
    assert usable_nodes(recipe, 16, 1, or_fewer=True) == 16
    with pytest.raises(ValueError, match="15 ranks"):
        usable_nodes(recipe, 15, 1, or_fewer=True)


def test_fields_are_printed_as_a_shell_wants_them() -> None:
    recipe = recipe_of("run.output=runs/mine")
    assert field_value(recipe, "run.output") == "runs/mine"
    assert field_value(recipe_of("init_weights=null"), "init_weights") == ""
    with pytest.raises(ValueError, match=r"--field run.outptu: no such field"):
        field_value(recipe, "run.outptu")


def test_the_command_prints_one_word_or_one_line_of_error() -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.cost.recipe_facts",
        "--set",
        "data.manifest=m",
        "--field",
        "stage",
        "--recipe",
    ]
    right, wrong = (
        subprocess.run([*command, path], check=False, cwd=ROOT, capture_output=True, text=True)
        for path in (STAGE2, "gone.yaml")
    )
    assert (right.returncode, right.stdout, right.stderr) == (0, "2\n", "")
    assert (wrong.returncode, wrong.stdout) == (1, "") and wrong.stderr.startswith("error: recipe gone.yaml")
    assert len(wrong.stderr.splitlines()) == 1
