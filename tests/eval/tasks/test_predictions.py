"""The prediction log: nothing lost, nothing twice, the same merge however the work was divided."""

import json
import os
from pathlib import Path

import pytest

from eval.tasks.predictions import PredictionLog, batches_of_rank, check_not_written, finished, merge

CASES = [(ranks, n) for ranks in (1, 2, 3, 7, 8) for n in sorted({0, 1, ranks - 1, ranks, ranks + 1, 500})]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("world_size", "count"), CASES)
def test_merged_bytes_do_not_depend_on_ranks(world_size: int, count: int, batch_size: int, tmp_path: Path) -> None:
    ids = [100 + number for number in range(count)]
    for rank in range(world_size):
        with PredictionLog(tmp_path, rank) as log:
            for batch in batches_of_rank(ids, {}, batch_size, rank, world_size):
                log.append({"id": each, "text": f"text {each}"} for each in batch)
    merge(tmp_path, ids)
    expected = "".join(json.dumps({"id": each, "text": f"text {each}"}) + "\n" for each in ids)
    assert (tmp_path / "predictions.jsonl").read_text() == expected


def test_batches_are_cut_before_they_are_divided() -> None:
    ids = list(range(10))
    parts = [batches_of_rank(ids, {3: {}}, 4, rank, 2) for rank in range(2)]
    assert parts == [[[0, 1, 2, 3], [8, 9]], [[4, 5, 6, 7]]]
    assert batches_of_rank(ids, {key: {} for key in range(4)}, 4, 0, 1) == [[4, 5, 6, 7], [8, 9]]


def test_every_cut_through_the_file_keeps_the_whole_lines_before_it(tmp_path: Path) -> None:
    with PredictionLog(tmp_path, 0) as log:
        log.append({"id": number, "text": "é" * number} for number in range(5))
    content = (tmp_path / "predictions.rank0.jsonl").read_bytes()
    for cut in range(len(content) + 1):
        (tmp_path / "predictions.rank0.jsonl").write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        assert list(finished(tmp_path)) == list(range(whole))
        with PredictionLog(tmp_path, 0) as log:
            log.append([{"id": 99, "text": "next"}])
        assert list(finished(tmp_path)) == [*range(whole), 99]


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path) -> None:
    with PredictionLog(tmp_path, 0), pytest.raises(ValueError, match="another process is writing it"):
        PredictionLog(tmp_path, 0)


def test_missing_and_contradicting_predictions_are_named(tmp_path: Path) -> None:
    with PredictionLog(tmp_path, 0) as log:
        log.append([{"id": "a", "text": "x"}])
    with pytest.raises(ValueError, match="1 of 2 predictions missing, first 'b'"):
        merge(tmp_path, ["a", "b"])
    with PredictionLog(tmp_path, 1) as log:
        log.append([{"id": "a", "text": "y"}])
    with pytest.raises(ValueError, match="id 'a' has two different predictions"):
        finished(tmp_path)


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "predictions.rank0.jsonl")
    with pytest.raises(ValueError, match="is not a regular file"):
        PredictionLog(tmp_path, 0)
    with pytest.raises(ValueError, match="is not a regular file"):
        check_not_written(tmp_path / "predictions.rank0.jsonl")
