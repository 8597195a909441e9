"""Trains any tower: AdamW, warmup and cosine, bf16 if the processor has it in hardware."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.progress_line import ProgressLine

WARMUP_SHARE = 0.08
MAX_GRADIENT_NORM = 1.0


def computes_in_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices in hardware (AVX-512 BF16 or AMX); elsewhere fp32 is faster."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def fit(
    name: str,
    parameters: Iterable[tuple[Iterable[Any], float]],
    loss_of_step: Callable[[int], Any],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.02,
) -> list[float]:
    """Minimise `loss_of_step(step)` for `steps` steps; returns the losses. Progress is shown on stderr.

    `parameters` are groups, each with its factor for the learning rate. Biases and norms have no weight decay.
    """
    import torch

    torch.backends.cuda.enable_flash_sdp(False)  # of CPUs, too: fused attention's backward is slow for short rows
    groups: list[dict[str, Any]] = []
    for members, share in [(list(members), share) for members, share in parameters]:
        for is_matrix in (True, False):
            chosen = [p for p in members if (p.ndim > 1) == is_matrix]
            decay = weight_decay if is_matrix else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "lr": learning_rate * share})
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in groups],
        total_steps=max(steps, 2),
        pct_start=WARMUP_SHARE,
        cycle_momentum=False,
    )
    low_precision = computes_in_bf16()
    losses: list[float] = []
    line = ProgressLine(name, steps, "steps")
    for step in line.follow(range(steps)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
            loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 20 == 0:
            line.note = f"loss {losses[-1]:.3f}"
    return losses


def mean_over_samples(logits_BLV: Any, labels_BL: Any) -> Any:
    """Cross-entropy averaged over the labels of each sample (-100: no label), then over samples. So an answer of one
    word counts as much as a caption of ten words."""
    from torch.nn import functional

    losses_BL = functional.cross_entropy(logits_BLV.transpose(1, 2).float(), labels_BL, reduction="none")
    counts_B = (labels_BL != -100).sum(dim=1).clamp(min=1)
    return (losses_BL.sum(dim=1) / counts_B).mean()
