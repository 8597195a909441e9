"""What compiling a step would save: neighbouring pointwise operations between two products become one kernel."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline.cost.operations import POINTWISE, Operation


def fused(operations: list[Operation]) -> list[Operation]:
    """The same work in fewer kernels: each reads what comes from outside it, and writes what is used outside it.

    Operations in one kernel follow one another without a product between them, and share a tensor. A compiler may do
    better (it may compute again instead of keeping), or worse (a sum over rows takes a kernel of its own).
    """
    readers: defaultdict[int, set[int]] = defaultdict(set)
    for place, operation in enumerate(operations):
        for storage in operation.reads:
            readers[storage].add(place)
    found: list[Operation] = []
    for run in _runs(operations):
        for group in _connected(run, operations):
            found.append(_one_kernel(group, operations, readers))
    return found


def _runs(operations: list[Operation]) -> Iterator[list[int]]:
    """Places of neighbouring pointwise operations; of any other operation, its place alone."""
    run: list[int] = []
    for place, operation in enumerate(operations):
        if operation.kind == POINTWISE and (not run or operations[run[-1]].part == operation.part):
            run.append(place)
            continue
        if run:
            yield run
        run = [place] if operation.kind == POINTWISE else []
        if not run:
            yield [place]
    if run:
        yield run


def _connected(run: list[int], operations: list[Operation]) -> Iterable[list[int]]:
    """The run in groups that share tensors."""
    groups: list[tuple[set[int], list[int]]] = []
    for place in run:
        storages = operations[place].reads.keys() | operations[place].writes.keys()
        near = [group for group in groups if group[0] & storages]
        groups = [group for group in groups if not group[0] & storages]
        joined = [other for group in near for other in group[1]]
        groups.append((storages.union(*(group[0] for group in near)), [*joined, place]))
    return [members for _, members in groups]


def _one_kernel(group: list[int], operations: list[Operation], readers: dict[int, set[int]]) -> Operation:
    first = operations[group[0]]
    if len(group) == 1:
        return first
    members, reads, writes = set(group), dict[int, int](), dict[int, int]()
    for place in sorted(group):
        for storage, size in operations[place].reads.items():
            if storage not in writes:
                reads[storage] = max(size, reads.get(storage, 0))
        for storage, size in operations[place].writes.items():
            writes[storage] = max(size, writes.get(storage, 0))
    for storage in list(writes):
        used = readers.get(storage, set())
        if used and used <= members:
            del writes[storage]
    kernels = max(operations[place].kernels for place in group)
    return replace(first, name="fused", kernels=kernels, reads=reads, writes=writes, is_cast=False)
