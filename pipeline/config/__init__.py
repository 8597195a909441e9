"""The recipe: its fields and checks (`models`, `sections`), and how it is read. Imports nothing of the project."""

from pipeline.config.models import Language, QFormer, Section, Vision
from pipeline.config.reading import defaults, dump_recipe, for_ranks, load_recipe, parse_recipe
from pipeline.config.sections import Batch, Data, Faults, Objectives, Optimizer, Recipe, Run, Validation

__all__ = [
    "Batch", "Data", "Faults", "Language", "Objectives", "Optimizer", "QFormer", "Recipe", "Run", "Section",
    "Validation", "Vision", "defaults", "dump_recipe", "for_ranks", "load_recipe", "parse_recipe",
]  # fmt: skip
