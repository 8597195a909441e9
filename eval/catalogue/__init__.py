"""Every evaluation task, in the order of --help. Each is declared in a file of its own here."""

from eval.catalogue.captioning import CAPTIONING
from eval.catalogue.gqa import GQA
from eval.catalogue.nocaps import NOCAPS
from eval.catalogue.okvqa import OKVQA
from eval.catalogue.retrieval import RETRIEVAL
from eval.catalogue.task import EvaluationTask, Kind
from eval.catalogue.vqa import VQA

__all__ = ["TASKS", "EvaluationTask", "Kind", "known_task"]

TASKS: dict[str, EvaluationTask] = {task.name: task for task in (CAPTIONING, NOCAPS, VQA, OKVQA, GQA, RETRIEVAL)}


def known_task(name: str) -> str:
    """The name of a task, checked. Raises ValueError for any other."""
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task; choose one of {', '.join(TASKS)}")
    return name
