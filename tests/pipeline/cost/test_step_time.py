"""Operations as a GPU's kernels: what is counted, what fusing saves, what a step's parts take."""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.cost.estimate import Assumptions
from pipeline.cost.fusion import fused
from pipeline.cost.gpus import gpu_named
from pipeline.cost.operations import ATTENTION, POINTWISE, PRODUCT, Operation
from pipeline.cost.recorder import Recorder
from pipeline.cost.saving import save_of
from pipeline.cost.states import Tensors
from pipeline.cost.step_time import KERNEL_S, Step, Work, seconds_of, syncs_in_mid_step, work_of
from pipeline.cost.traffic import GRADIENTS, WEIGHTS, Transfer, exposed_shares
from pipeline.cost.traffic import seconds_of as transfer_s
from pipeline.cost.unweighted import typical_lengths
from pipeline.cost.zero_policy import read_policy

ROWS, WIDTH = 64, 32
FP32, BF16 = 4, 2
A100 = gpu_named("a100-40gb")


def operations_of(work: Callable[[], object]) -> list[Operation]:
    recorder = Recorder()
    with recorder:
        kept = work()
    del kept
    return recorder.operations


def test_views_and_allocations_launch_nothing() -> None:
    rows = torch.zeros(ROWS, WIDTH)
    assert operations_of(lambda: rows.view(-1, 2).T.unsqueeze(0).expand(3, -1, -1).detach()[1:]) == []
    assert operations_of(lambda: torch.empty(3, 4)) == []


def test_a_product_and_a_sum_have_the_bytes_and_flops_that_are_known() -> None:
    rows, weights = torch.zeros(ROWS, WIDTH), torch.zeros(WIDTH, WIDTH)
    product, added = operations_of(lambda: rows @ weights + rows)
    assert (product.kind, product.flops) == (PRODUCT, 2 * ROWS * WIDTH * WIDTH)
    assert product.num_bytes == FP32 * (2 * ROWS * WIDTH + WIDTH * WIDTH)
    assert (added.kind, added.num_bytes) == (POINTWISE, FP32 * 3 * ROWS * WIDTH)


def test_what_expands_is_read_once_and_what_is_picked_is_not_read_whole() -> None:
    rows, one, table = torch.zeros(ROWS, WIDTH), torch.zeros(1, WIDTH), torch.zeros(10_000, WIDTH)
    [added] = operations_of(lambda: rows + one.expand(ROWS, WIDTH))
    assert added.num_bytes == FP32 * (2 * ROWS * WIDTH + WIDTH)
    ids = torch.zeros(ROWS, dtype=torch.int64)
    [picked] = operations_of(lambda: functional.embedding(ids, table))
    assert picked.num_bytes == FP32 * 2 * ROWS * WIDTH + 8 * ROWS


def test_slices_of_one_product_are_read_each_and_one_slice_twice_is_read_once() -> None:
    joined = torch.zeros(ROWS, 3 * WIDTH)
    one, two, three = joined.split(WIDTH, dim=1)
    [both] = operations_of(lambda: torch.addcmul(one, two, three))
    [same] = operations_of(lambda: one * one)
    assert (both.num_bytes, same.num_bytes) == (FP32 * 4 * ROWS * WIDTH, FP32 * 2 * ROWS * WIDTH)
    [whole] = operations_of(lambda: joined[1:] * joined[:-1])
    assert sum(whole.reads.values()) == joined.nbytes  # slices that overlap: no more than there is


def test_what_changes_some_places_moves_no_more_than_these() -> None:
    table, places, values = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, 1, dtype=torch.int64), torch.zeros(ROWS, 1)
    [changed] = operations_of(lambda: table.scatter_(1, places, values))
    assert changed.num_bytes == (8 + 2 * FP32) * ROWS


def test_autocast_casts_once_for_every_linear_that_reads_fp32() -> None:
    rows = torch.zeros(ROWS, WIDTH)
    layers = [torch.nn.Linear(WIDTH, WIDTH).bfloat16() for _ in range(3)]

    def work(cast_first: bool) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            read = rows.bfloat16() if cast_first else rows
            return [layer(read) for layer in layers]

    assert sum(each.is_cast for each in operations_of(lambda: work(cast_first=False))) == 3
    assert sum(each.is_cast for each in operations_of(lambda: work(cast_first=True))) == 1


def test_neighbours_between_products_become_one_kernel_that_reads_its_inputs_and_writes_its_output() -> None:
    rows, weights = torch.zeros(ROWS, WIDTH), torch.zeros(WIDTH, WIDTH)

    def work() -> Tensor:
        normed = functional.layer_norm(functional.gelu(rows @ weights) + rows, (WIDTH,))
        return normed @ weights

    eager = operations_of(work)
    merged = fused(eager)
    assert [each.kind for each in merged] == [PRODUCT, POINTWISE, PRODUCT] and len(eager) == 5
    statistics = 2 * FP32 * ROWS  # the norm's means and deviations, which nothing here reads
    assert merged[1].num_bytes == FP32 * 3 * ROWS * WIDTH + statistics
    assert sum(each.flops for each in merged) == sum(each.flops for each in eager)


def test_a_fused_kernel_still_writes_what_the_way_back_reads() -> None:
    weights = torch.zeros(WIDTH, WIDTH, requires_grad=True)
    rows = torch.zeros(ROWS, WIDTH)
    merged = fused(operations_of(lambda: functional.gelu((rows @ weights).tanh() * 2).sum().backward()))
    forward = next(each for each in merged if each.name == "fused")
    # tanh's output for tanh's gradient, its double for gelu's, and gelu's for the sum.
    assert sum(forward.writes.values()) == FP32 * 3 * ROWS * WIDTH


def test_chains_that_share_no_tensor_stay_apart() -> None:
    first, second = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)
    assert len(fused(operations_of(lambda: (first.exp().sin(), second.exp().sin())))) == 2


def test_the_slowest_of_arithmetic_memory_and_launch_decides() -> None:
    plain = Operation("mm", "", PRODUCT, False, False, 0.0, 1, {}, {})
    assert seconds_of(plain, A100) == KERNEL_S
    assert seconds_of(replace(plain, flops=312e12 * 0.74), A100) == pytest.approx(1)
    assert seconds_of(replace(plain, flops=312e12 * 0.42, kind=ATTENTION), A100) == pytest.approx(1)
    assert seconds_of(replace(plain, flops=19.5e12 * 0.74, in_fp32=True), A100) == pytest.approx(1)
    assert seconds_of(replace(plain, reads={0: int(1555e9 * 0.85)}), A100) == pytest.approx(1)
    both = work_of([plain, replace(plain, kind=POINTWISE, is_cast=True)], A100, passes=3)
    assert (both.kernels, both.casts) == (6, 3) and both.other_s == pytest.approx(3 * KERNEL_S)


def test_a_step_takes_no_less_than_the_host_needs_to_launch_it() -> None:
    step = Step(Work(1_000_000, 0, 0.0, 0, 1.0, 0.0), 0.1, 0.2, 3, 0, 312e12, 312e12)
    assert step.launch_s > 1 and step.step_s == pytest.approx(step.launch_s + 0.1 + 0.2 + 0.003)
    assert step.utilisation == pytest.approx(1 / step.step_s)


def test_deepspeeds_timer_waits_unless_it_is_switched_off() -> None:
    quiet = {"timers": {"throughput": {"enabled": False}}}
    assert (syncs_in_mid_step({}, passes=2), syncs_in_mid_step(quiet, passes=2)) == (4, 0)


def test_a_ring_leaves_a_node_once_and_a_direct_exchange_once_for_each_rank() -> None:
    node, size = 25e9, int(1e9)  # one port a node
    ring, direct = Transfer("ring", size), Transfer("direct", size, direct=True)
    assert transfer_s(ring, A100, 8, 8, node) == pytest.approx(1e9 / (300e9 * 0.8))
    assert transfer_s(ring, A100, 16, 8, node) == pytest.approx(1e9 / (25e9 * 0.8))
    assert transfer_s(direct, A100, 16, 8, node) == pytest.approx(8 * 8 / 15 * 1e9 / (25e9 * 0.8))
    inner = replace(ring, within_node=True)
    assert transfer_s(inner, A100, 16, 8, node) == transfer_s(ring, A100, 8, 8, node)


def test_gradients_are_hidden_by_the_next_batch_or_but_the_last_bucket_by_the_backward_pass() -> None:
    seconds = {GRADIENTS: 0.3, WEIGHTS: 0.1}
    plain, overlapping = (
        read_policy({"zero_optimization": {"stage": 1, "reduce_bucket_size": 100, "overlap_comm": on}})
        for on in (False, True)
    )
    assert exposed_shares(seconds, plain, 1000, ahead_s=0.1, backward_s=9) == {GRADIENTS: 0.75, WEIGHTS: 0.75}
    assert exposed_shares({}, plain, 1000, ahead_s=0.1, backward_s=9) == {GRADIENTS: 0, WEIGHTS: 0}
    shares = exposed_shares(seconds, overlapping, 1000, ahead_s=0.0, backward_s=9)
    assert shares == pytest.approx({GRADIENTS: 0.1, WEIGHTS: 1})
    shares = exposed_shares(seconds, overlapping, 1000, ahead_s=0.05, backward_s=0.09)
    assert shares == pytest.approx({GRADIENTS: (0.3 - 0.09) / 0.3, WEIGHTS: 0.5})


def test_training_waits_for_the_copy_of_a_save_and_not_for_the_disk() -> None:
    bridge = Tensors((500_000_000, 500_000_000), (), 4_000_000_000)
    save = save_of(bridge, A100, Assumptions(16, 8, 0.4, 12, 200e9))
    assert save.num_bytes == 12e9
    reduced_s = 2 * 12e9 * 15 / 16 / (200e9 * 0.8)
    assert save.waiting_s == pytest.approx(6 * 5e-4 + reduced_s + 12e9 / 3e9)
    assert save.writing_s == pytest.approx(12e9 / 1e9 + 12e9 / 1.4e9)


def test_typical_captions_are_cocos() -> None:
    lengths = typical_lengths(1680, 13)
    assert mean(lengths) == pytest.approx(13, abs=0.2) and lengths[-1] == 32 and lengths[0] >= 4
    assert lengths == sorted(lengths)
