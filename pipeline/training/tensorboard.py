"""TensorBoard: the numbers of metrics.jsonl in groups, and the texts and pictures of samples.jsonl."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pipeline.training.metric_groups import grouped
from pipeline.training.sample_texts import SampleText


class Curves:
    """The event files of a run. A folder that cannot be written raises OSError."""

    def __init__(self, run_folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first_step)

    def add_numbers(self, step: int, numbers: Mapping[str, float], split: str = "") -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(grouped(name, split), value, step)

    def add_texts(self, step: int, texts: Sequence[SampleText]) -> None:
        """One table of all texts."""
        self._writer.add_text("samples/texts", "\n".join(_table(texts)), step)

    def add_pictures(self, pictures: Sequence[Tensor]) -> None:
        """The pictures of the table's rows, uint8 [3, S, S] each."""
        for number, pixels_3SS in enumerate(pictures, 1):
            self._writer.add_image(f"samples/picture_{number}", pixels_3SS, 0)

    def close(self) -> None:
        self._writer.close()


def _table(texts: Sequence[SampleText]) -> Iterator[str]:
    asked = any(each.question for each in texts)
    names = ["picture", *(["question"] if asked else []), "text", "with the next picture", "reference"]
    yield f"| {' | '.join(names)} |"
    yield "|---" * len(names) + "|"
    for number, each in enumerate(texts, 1):
        told = [each.question] if asked else []
        cells = [f"{number}: {each.key}", *told, each.text, each.text_of_other, each.reference]
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in cells)} |"
