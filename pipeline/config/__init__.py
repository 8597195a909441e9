"""The recipe: its fields and checks (`sections`), and how it is read (`reading`). Imports nothing of the project."""

from pipeline.config.data_section import Data, SampleKind, Validation
from pipeline.config.reading import dump_recipe, for_ranks, load_recipe, parse_recipe
from pipeline.config.section import Section
from pipeline.config.sections import (
    Batch,
    Faults,
    Language,
    Objectives,
    Optimizer,
    QFormer,
    Recipe,
    Run,
    Vision,
)

__all__ = [
    "Batch", "Data", "Faults", "Language", "Objectives", "Optimizer", "QFormer", "Recipe", "Run", "SampleKind",
    "Section", "Validation", "Vision", "dump_recipe", "for_ranks", "load_recipe", "parse_recipe",
]  # fmt: skip
