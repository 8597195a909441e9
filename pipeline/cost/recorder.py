"""Arithmetic and live memory of a computation by part, seen operation by operation; its tensors may be fake ones."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from pipeline.cost.operations import Operation, operation_of

REST = "the rest"
DEVICE_OF = torch.ops.prim.device.default  # two calls in three, and nothing to record
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_efficient_attention_backward
MODEL_SHARE = 4 / 5  # of its products: the fifth makes the scores again, which a model's FLOPs leave out


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """FLOPs by part (matrix products and attention, a product of m x k and k x n as 2mnk), and bytes that live.

    Bytes are of what was made within, by the part that made it: neither weights nor what is freed again. `operations`
    are all that launch kernels, in their order; they are listed only where they are wanted, as that takes time.
    `repeated` are the FLOPs of activation checkpointing, which computes layers again in the backward pass.
    """

    def __init__(self, lists_operations: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part, self.lists_operations = REST, lists_operations
        self._layers_begun = 0
        self.flops: defaultdict[str, float] = defaultdict(float)
        self.repeated: defaultdict[str, float] = defaultdict(float)
        self.live: defaultdict[str, int] = defaultdict(int)
        self.moments: list[tuple[str, int]] = []  # at each new storage: the part that runs, all live bytes
        self.operations: list[Operation] = []
        self.seen, self.numbers, self.next_number = WeakIdKeyDictionary(), WeakIdKeyDictionary(), count()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if function is DEVICE_OF and isinstance(arguments[0], FakeTensor):
            return arguments[0].fake_device
        options = options or {}
        out = function(*arguments, **options)
        law, work = flop_registry.get(function._overloadpacket), 0.0
        if law:
            work = law(*arguments, **options, out_val=out)
            share = MODEL_SHARE if function._overloadpacket is ATTENTION_BACKWARD else 1
            self.flops[self.part] += work * share
            if self._layers_begun:
                self.repeated[self.part] += work * share
        if self.lists_operations:
            operation = operation_of(function, (arguments, options), out, self.part, work, self._number)
            self.operations += [operation] if operation else []
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return out

    def _number(self, tensor: Tensor) -> int:
        """Of the tensor's storage, for as long as that lives; no two of a run have the same."""
        storage = tensor.untyped_storage()
        if storage not in self.numbers:
            self.numbers[storage] = next(self.next_number)
        return int(self.numbers[storage])

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.seen:
            return
        self.seen[storage] = True
        part, size = self.part, storage.nbytes()
        self.live[part] += size
        self.moments.append((part, sum(self.live.values())))
        weakref.finalize(storage, partial(self._freed, part, size))

    def _freed(self, part: str, size: int) -> None:
        self.live[part] -= size

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        outer, self.part = self.part, part
        try:
            yield
        finally:
            self.part = outer

    def watch(self, owner: Any, method: str, part: str) -> None:
        """From now on, what `owner.method` does belongs to `part`."""
        original: Callable[..., Any] = getattr(owner, method)

        @wraps(original)
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.within(part):
                return original(*arguments, **options)

        setattr(owner, method, watched)

    @contextmanager
    def backward_pass(self, part: str) -> Iterator[None]:
        """Within is a backward pass: a module that runs there runs for the second time."""

        def begin(*_: Any) -> None:
            self._layers_begun += 1

        def end(*_: Any) -> None:
            self._layers_begun -= 1

        self.part = part
        # Checkpointing leaves a layer by an exception when it has all that it needs: `always_call`.
        hooks = [register_module_forward_pre_hook(begin), register_module_forward_hook(end, always_call=True)]
        try:
            yield
        finally:
            self.part, self._layers_begun = REST, 0
            for hook in hooks:
                hook.remove()

    def frozen(self, *modules: torch.nn.Module) -> None:
        """Weights are not counted, though an operation may give one out again."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self.seen[tensor.untyped_storage()] = True
