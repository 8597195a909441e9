"""Configurations that come with the project: a recipe of the paper is planned with no network and no download."""

from pathlib import Path

from pipeline.config import Recipe

CONFIGURATIONS = Path(__file__).with_name("configurations")


def folder_of(name: str) -> str:
    """The folder with the sizes of a model of the hub, where one comes with the project; else the name itself."""
    folder = CONFIGURATIONS / name.replace("/", "--")
    return str(folder) if (folder / "config.json").is_file() else name


def with_shipped(recipe: Recipe) -> Recipe:
    """The recipe with its models of the hub named by those folders, which hold sizes alone."""
    qformer = recipe.qformer.model_copy(update={"bert": folder_of(recipe.qformer.bert)})
    language = recipe.language and recipe.language.model_copy(update={"name": folder_of(recipe.language.name)})
    return recipe.model_copy(update={"qformer": qformer, "language": language})
