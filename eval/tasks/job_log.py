"""The prediction log of each rank of a job: all ranks open theirs together, and no other job may write one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eval.sets.official_files import SampleId
from eval.tasks.predictions import RANK_FILES, Entry, PredictionLog, check_not_written, finished
from pipeline.distributed import collectives, process_group


@contextmanager
def job_log(folder: Path) -> Iterator[tuple[PredictionLog, dict[SampleId, Entry]]]:
    """This rank's log, and all predictions so far. Every rank must enter it; none continues before all have read.

    Raises ValueError on every rank while a process of another job still writes one of the folder's logs: such a rank
    has outlived its job, and would predict the same samples.
    """
    rank, world_size = process_group.rank(), process_group.world_size()
    with ExitStack() as stack:
        with collectives.together():
            log = stack.enter_context(PredictionLog(folder, rank))
        with collectives.together():
            own = {folder / f"predictions.rank{each}.jsonl" for each in range(world_size)}
            if rank == 0:
                for path in set(folder.glob(RANK_FILES)) - own:
                    check_not_written(path)
            done = finished(folder)
        yield log, done
