"""Every evaluation task, by name. Each is declared in a file of its own here: a new file is a new task."""

from importlib import import_module
from pkgutil import iter_modules

from eval.catalogue.task import EvaluationTask, Kind

__all__ = ["TASKS", "EvaluationTask", "Kind", "known_task"]


def declared() -> dict[str, EvaluationTask]:
    """The tasks of all files of this folder."""
    modules = [import_module(f"{__name__}.{each.name}") for each in iter_modules(__path__)]
    tasks = [value for module in modules for value in vars(module).values() if isinstance(value, EvaluationTask)]
    return {task.name: task for task in tasks}


TASKS = declared()


def known_task(name: str) -> str:
    """The name of a task, checked. Raises ValueError for any other."""
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task; choose one of {', '.join(TASKS)}")
    return name
