"""The collectives against plain indexing, over real gloo ranks."""

import pytest
import torch
from torch import Tensor

from pipeline.distributed import collectives, process_group
from tests.support.gloo_ranks import run_on_ranks

ROWS = 3


def rows_of(rank: int) -> Tensor:
    return torch.arange(ROWS * 4, dtype=torch.float32).view(ROWS, 2, 2) + 100 * rank


def use_every_collective(wishes: list[list[list[int]]]) -> dict[str, object]:
    """`wishes`: for each exchange, the rows that each rank asks for."""
    rank = process_group.rank()
    own = rows_of(rank).requires_grad_()
    collectives.barrier()
    gathered = collectives.gather_rows(own)
    exchanged = [collectives.start_exchange(torch.tensor(wish[rank]), torch.tensor(0)).rows(own) for wish in wishes]
    return {
        "gathered": gathered,
        "booleans": collectives.gather_rows(torch.tensor([rank == 0, True])),
        "integers": collectives.gather_integers([rank, 2**60 + rank]),
        "mean": collectives.mean_over_ranks(torch.tensor([float(rank), 1.0])),
        "any": [collectives.any_rank(False), collectives.any_rank(rank == 1)],
        "exchanged": exchanged,
        "gradient": gathered.requires_grad,
        "returned": torch.autograd.grad(exchanged[0].sum(), own)[0],
    }


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_collectives_equal_plain_indexing(num_ranks: int) -> None:
    total = ROWS * num_ranks
    generator = torch.Generator().manual_seed(num_ranks)
    wishes = [torch.randint(0, total, (num_ranks, ROWS), generator=generator).tolist() for _ in range(6)]
    wishes.append([[total - 1] * ROWS] * num_ranks)  # everyone asks one rank for one row
    wishes.append([[(rank * ROWS + row + ROWS) % total for row in range(ROWS)] for rank in range(num_ranks)])
    joined = torch.cat([rows_of(rank) for rank in range(num_ranks)])
    for rank, found in enumerate(run_on_ranks(num_ranks, use_every_collective, wishes)):
        assert torch.equal(found["gathered"], joined)
        assert found["booleans"].tolist() == [True, True] + [False, True] * (num_ranks - 1)
        assert found["integers"] == [[each, 2**60 + each] for each in range(num_ranks)]
        assert found["mean"].tolist() == [(num_ranks - 1) / 2, 1.0]
        assert found["any"] == [False, num_ranks > 1]
        for wish, rows in zip(wishes, found["exchanged"], strict=True):
            assert torch.equal(rows, joined[torch.tensor(wish[rank])])
        assert not found["gradient"]
        asked = torch.tensor(wishes[0]).flatten()  # a row's gradient: how often the ranks asked for it
        counts = torch.bincount(asked, minlength=total)[rank * ROWS : (rank + 1) * ROWS]
        assert torch.equal(found["returned"], counts[:, None, None].expand(ROWS, 2, 2).float())


def fail_on_rank_1() -> int:
    if process_group.rank() == 1:
        raise RuntimeError("this rank is ill")
    collectives.barrier()
    return 0


def test_a_failing_rank_fails_the_test_and_leaves_no_process() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 failed(?s:.)*this rank is ill"):
        run_on_ranks(2, fail_on_rank_1)
