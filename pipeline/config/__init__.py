"""The recipe: its fields and checks, and how it is read. Imports nothing of the project."""

from pipeline.config.data_section import Data, SampleKind, Validation
from pipeline.config.model_sections import Language, QFormer, Vision
from pipeline.config.places import check_places, in_environment, is_same_place, moved, with_absolute_places
from pipeline.config.reading import defaults, dump_recipe, for_ranks, load_recipe, parse_recipe
from pipeline.config.references import references_in
from pipeline.config.section import Section
from pipeline.config.sections import Batch, Faults, Objectives, Optimizer, Recipe, Run

__all__ = [
    "Batch", "Data", "Faults", "Language", "Objectives", "Optimizer", "QFormer", "Recipe", "Run", "SampleKind",
    "Section", "Validation", "Vision", "check_places", "defaults", "dump_recipe", "for_ranks", "in_environment",
    "is_same_place", "load_recipe", "moved", "parse_recipe", "references_in", "with_absolute_places",
]  # fmt: skip
