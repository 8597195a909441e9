"""Frozen layers in fp8 (e4m3): a scale for each output row of the weights and for each row of the input.

Shapes: R rows (tokens), I inputs and O outputs of a layer.
A GPU of compute capability 8.9 multiplies fp8 itself. On a CPU torch computes the same numbers in fp32: for tests,
and to measure what fp8 changes.
"""

import torch
from torch import Tensor, nn

from pipeline.models.compiling import longest_list

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_ROW = 1e-12  # the largest value of a row counts as this much at least, so a row of zeros has a scale
MULTIPLE = 16  # of which both sizes of a matrix are, for a GPU's fp8 products
CAPABILITY = (8, 9)  # the first with fp8 products


def check_gpu(device: str) -> None:
    """Raises ValueError when `device` is a GPU without fp8 products."""
    if torch.device(device).type != "cuda":
        return
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ValueError(
            f"vision.precision 'fp8': {torch.cuda.get_device_name(device)} (compute capability {found[0]}.{found[1]}) "
            f"has no fp8 products, which begin at {CAPABILITY[0]}.{CAPABILITY[1]}; use fp16"
        )


def to_fp8(encoder: nn.Module) -> None:
    """Put the Linear layers of a frozen encoder's blocks into fp8, in place. A layer whose sizes do not fit stays.

    Raises ValueError when no layer fits.
    """
    found = 0
    for block in longest_list(encoder):
        for parent in list(block.modules()):
            _join_biases(parent)
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE):
                    setattr(parent, name, Fp8Linear(layer))
                    found += 1
    if not found:
        raise ValueError(
            f"vision.precision 'fp8': no layer of the image encoder's blocks has two sizes that are multiples of "
            f"{MULTIPLE}; use fp16"
        )


def _join_biases(attention: nn.Module) -> None:
    """timm's EVA and BEiT hold the biases of `qkv` apart, and then multiply by its weight themselves."""
    parts = [getattr(attention, name, None) for name in ("q_bias", "k_bias", "v_bias")]
    qkv = getattr(attention, "qkv", None)
    if isinstance(qkv, nn.Linear) and all(isinstance(part, Tensor) for part in parts):
        qkv.bias = nn.Parameter(torch.cat([part.detach() for part in parts if part is not None]))
        for name in ("q_bias", "k_bias", "v_bias"):
            setattr(attention, name, None)


class Fp8Linear(nn.Module):
    """A frozen nn.Linear: [..., I] -> [..., O] in fp16. There is a bias always: kernels without one are less tested."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight_OI, scale_O1 = quantise(layer.weight.detach().float())
        bias_O = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
        self.weight = nn.Parameter(weight_OI, requires_grad=False)
        self.bias = nn.Parameter(bias_O.half(), requires_grad=False)
        self.register_buffer("scale_1O", scale_O1.view(1, -1))

    def forward(self, inputs: Tensor) -> Tensor:
        rows_RI, scale_R1 = quantise(inputs.flatten(0, -2))
        outputs_RO: Tensor = torch._scaled_mm(
            rows_RI,
            self.weight.t(),
            scale_a=scale_R1,
            scale_b=self.get_buffer("scale_1O"),
            bias=self.bias,
            out_dtype=torch.float16,
            use_fast_accum=True,  # a GPU's faster sums, which a forward pass bears
        )
        return outputs_RO.view(*inputs.shape[:-1], -1)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}"


def quantise(values_RI: Tensor) -> tuple[Tensor, Tensor]:
    """Values of any floating type as fp8 with a scale a row [R, 1] in fp32: values = fp8 * scale, up to rounding.

    A row with a value that is not finite has no finite product.
    """
    largest_R1 = values_RI.abs().amax(dim=-1, keepdim=True).float()
    scale_R1 = largest_R1.clamp(min=SMALLEST_ROW) / LARGEST
    return (values_RI / scale_R1).to(FP8), scale_R1
