"""Both stages at full size on fake CUDA tensors: CUDA's autocast, no operation of two devices, losses in fp32."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config import load_recipe
from pipeline.cost.unweighted import caption_batch, longest_lengths, unweighted_task
from pipeline.data.batch import Batch
from pipeline.distributed.rehearsal import as_one_of, replaced
from pipeline.tokens import Tokens
from pipeline.training.task import StepPlace
from tests.support.paper_sizes import save_configs

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
RANKS, REAL_SHARE = 16, 0.5
IMAGE_TOKENS = (257, 1408)  # of ViT-g at 224 px
COPIES = ("_to_copy", "copy_", "_copy_from")  # the operations that are there to go from one device to another


class Devices(TorchDispatchMode):
    """The operations that saw tensors of two devices, or were not on CUDA. Single numbers of the CPU may go along."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        out = function(*arguments, **(options or {}))
        self.operations += 1
        tensors = [each for each in tree_leaves((arguments, options, out)) if isinstance(each, Tensor)]
        used = {each.device.type for each in tensors if each.ndim}
        if used - {"cuda"} and function._overloadpacket.__name__ not in COPIES:
            self.faults.append(f"{function} of {sorted(used)}")
        return out


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The kernel that CUDA would choose: torch's choice asks the driver."""
    rows = [queries, keys, values]
    if torch.is_autocast_enabled("cuda"):
        rows = [each.to(torch.get_autocast_dtype("cuda")) for each in rows]
    assert len({each.dtype for each in rows}) == 1, [each.dtype for each in rows]
    if attn_mask is None and rows[0].dtype != torch.float32:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(*rows, dropout_p, is_causal, scale=scale)[0]
    bias = None
    if attn_mask is not None:
        bias = attn_mask.to(rows[0].dtype).expand(*rows[0].shape[:3], rows[1].shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(*rows, bias, False, dropout_p, is_causal, scale=scale)[0]


@contextmanager
def as_if_cuda() -> Iterator[None]:
    """torch without a GPU as it is with one, as far as fake tensors need it."""
    generator = SimpleNamespace(manual_seed=lambda _seed: None)
    with ExitStack() as stack:
        for owner, name, found in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_: True),
            (torch, "Generator", lambda **_: generator),
        ):
            stack.enter_context(mock.patch.object(owner, name, found))
        stack.enter_context(replaced(functional, {"scaled_dot_product_attention": attention}))
        yield


def moved(module: nn.Module, mode: FakeTensorMode) -> None:
    """Fake parameters and buffers on CUDA in the place of those on the CPU; what was one tensor stays one."""
    made: dict[int, Tensor] = {}

    def on_cuda(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: on_cuda(tensor) for name, tensor in tensors.items() if tensor is not None})


def with_padding(text: Tokens) -> Tokens:
    """Half of the places are padding, as the host knows."""
    return Tokens(text.ids, text.is_token, int(text.ids.numel() * REAL_SHARE))


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    save_configs(folder)
    return folder


@pytest.mark.parametrize("name", ["stage1_vitg", "stage2_vitg_flant5xxl", "stage2_vitg_opt2.7b"])
def test_a_forward_pass_stays_on_cuda_and_ends_in_fp32(configs: Path, name: str) -> None:
    edits = [f"qformer.bert={configs}/bert"]
    if name.startswith("stage2"):
        edits.append(f"language.name={configs}/{name.rpartition('_')[2]}")
    if name.endswith("flant5xxl"):  # its 24 layers are alike
        edits += ["language.config.num_layers=4", "language.config.num_decoder_layers=4"]
    recipe = load_recipe(RECIPES / f"{name}.yaml", edits)
    mode, devices = FakeTensorMode(), Devices()
    task = unweighted_task(recipe, mode)
    for part in (task.bridge, task.towers.language.model if recipe.language else task.towers.vision):
        moved(part, mode)
    with mode, as_if_cuda():
        plain = caption_batch(recipe, recipe.batch.micro_size, longest_lengths(recipe)).to("cuda")
        context, target = with_padding(plain.context), with_padding(plain.target)
        # Stage 2 gets its image tokens as the batch one ahead has them; stage 1's pass shows the encoder.
        made = torch.empty((recipe.batch.micro_size, *IMAGE_TOKENS), dtype=torch.float16, device="cuda")
        frozen = made if recipe.language else None
        batch = Batch(plain.pixels_B3SS, plain.image_ids_B, context, target, 0, frozen)
        place = StepPlace(3, 1.0, batch.target.ids.shape[1], 7, RANKS)
        with as_one_of(RANKS, batch.target.num_real()), devices:
            losses = task(batch, place)
    assert not devices.faults, devices.faults[:5]
    assert devices.operations > 1000  # a whole pass was seen
    for loss, value in losses.items():
        assert (value.device.type, value.dtype, value.shape) == ("cuda", torch.float32, ()), loss
