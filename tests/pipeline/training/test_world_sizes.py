"""Two ranks of batch 4, or four of 2, give the losses and, averaged, the gradients of one rank of batch 8.

The law: every rank's ITC compares its own rows (with gradient) to all rows (without, its own among them), so that the
mean of the ranks' gradients is the joined batch's; token losses are weighted by the tokens of all ranks.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Batch as BatchSizes
from pipeline.config import Data, Language, Objectives, Recipe, Run, Vision
from pipeline.data.batch import Batch
from pipeline.distributed import collectives, process_group
from pipeline.tokens import Tokens, pad_tokens
from pipeline.training.agreement import agree
from pipeline.training.stage1_task import Stage1Task
from pipeline.training.stage2_task import Stage2Task
from tests.support.gloo_ranks import run_on_ranks
from tests.support.random_bridges import DECODE, PAD, random_batch, random_images, random_stage1, random_stage2

RECIPE = Recipe(
    stage=1,
    vision=Vision(name="identity"),
    data=Data(manifest=Path("none")),
    batch=BatchSizes(global_size=8, micro_size=8),
    run=Run(output=Path("none"), steps=1),
)
LENGTHS = [3, 32, 7, 1, 12, 5, 9, 2]
IMAGE_IDS = [5, 6, 7, 8, 9, 6, 10, 11]  # an image twice, on two ranks


def rows(tokens: Tokens, part: slice) -> Tokens:
    """Some rows, cut to the longest of them as a rank of its own would have padded them."""
    longest = int(tokens.is_token[part].sum(dim=1).max()) if tokens.ids.shape[1] else 0
    return Tokens(tokens.ids[part, :longest], tokens.is_token[part, :longest])


def part_of(batch: Batch, part: slice) -> Batch:
    return Batch(
        batch.pixels_B3SS[part],
        batch.image_ids_B[part],
        rows(batch.context, part),
        rows(batch.target, part),
        0,
        question=rows(batch.question, part) if batch.question else None,
    )


def losses_and_gradients(task: Any, batch: Batch, num_parts: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step over this rank's rows in `num_parts` micro batches: means over parts and ranks, as the engine makes."""
    rank, ranks = process_group.rank(), process_group.world_size()
    tokens_BPI = batch.pixels_B3SS.clone().requires_grad_()  # as those of a trained image encoder
    batch = replace(batch, pixels_B3SS=tokens_BPI)
    size = len(batch.image_ids_B) // ranks // num_parts
    starts = [(part * ranks + rank) * size for part in range(num_parts)]
    parts = [part_of(batch, slice(start, start + size)) for start in starts]
    places, _ = agree(task, parts, RECIPE.seed, 0, False)
    sums: dict[str, Tensor] = {}
    for part, place in zip(parts, places, strict=True):
        values = task(part, place)
        (values["loss"] / num_parts).backward()
        for name in values:
            sums[name] = sums.get(name, torch.zeros(())) + values[name].detach() / num_parts
    means = {name: collectives.mean_over_ranks(value) for name, value in sums.items()}
    gradients = {
        name: collectives.mean_over_ranks(torch.zeros_like(p) if p.grad is None else p.grad)
        for name, p in (*task.bridge.named_parameters(), ("tokens", tokens_BPI))
    }
    return means, gradients


def stage1_step(
    rule: str, num_parts: int = 1, image_ids: list[int] = IMAGE_IDS
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    settings = Objectives(negatives=rule)  # type: ignore[arg-type]
    task = Stage1Task(random_stage1(), nn.Identity(), settings, DECODE, "fp32")  # type: ignore[arg-type]
    return losses_and_gradients(task, random_batch(LENGTHS, image_ids=image_ids), num_parts)


def stage2_step(folder: str, kind: str, num_parts: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    from pipeline.models.language import build_language

    language = build_language(Language(name=folder, precision="fp32"), "cpu")
    language.model.double()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 20, (length,), generator=generator).tolist() for length in LENGTHS]
    contexts = [[3, 4, 1][: 1 + index % 3] if kind == "seq2seq" else [] for index in range(len(texts))]
    batch = Batch(
        random_images(len(texts)), torch.tensor(IMAGE_IDS), pad_tokens(contexts, PAD), pad_tokens(texts, PAD), 0
    )
    bridge = random_stage2(language.width)
    task = Stage2Task(bridge, nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    return losses_and_gradients(task, batch, num_parts)


def questions_step(folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stage 2 whose Q-Former reads questions of many lengths."""
    from pipeline.models.language import build_language

    language = build_language(Language(name=folder, precision="fp32"), "cpu")
    language.model.double()
    batch = random_batch(LENGTHS, image_ids=IMAGE_IDS)
    answers = Tokens(batch.target.ids % 20, batch.target.is_token)
    bridge = random_stage2(language.width, reads_questions=True)
    task = Stage2Task(bridge, nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    return losses_and_gradients(task, replace(batch, question=batch.target, target=answers), 1)


def every_step(towers: str) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """All that is compared between one rank and two, in one start of the ranks."""
    return {
        "stage 1": stage1_step("softmax"),
        "stage 1, older rule of negatives": stage1_step("softmax_plus_epsilon"),
        "stage 1, one image alone": stage1_step("softmax", image_ids=[5] * 8),
        "stage 2, T5": stage2_step(f"{towers}/t5", "seq2seq"),
        "stage 2, OPT": stage2_step(f"{towers}/opt", "causal"),
        "stage 2, T5, questions": questions_step(f"{towers}/t5"),
        "stage 2, OPT, accumulated": stage2_step(f"{towers}/opt", "causal", num_parts=2),
    }


@pytest.fixture(scope="module")
def joined(towers: Path) -> dict[str, Any]:
    return every_step(str(towers))


@pytest.fixture(scope="module", params=[2, 4])
def of_ranks(request: pytest.FixtureRequest, towers: Path) -> list[dict[str, Any]]:
    return run_on_ranks(request.param, every_step, str(towers))


def largest_difference(found: Any, wanted: Any) -> float:
    """Of all losses, measures and gradients: the largest difference, relative to the largest element of its tensor."""
    worst = 0.0
    assert [each.keys() for each in found] == [each.keys() for each in wanted]
    for found_of, wanted_of in zip(found, wanted, strict=True):
        for name, tensor in wanted_of.items():
            scale, difference = float(tensor.abs().max()), float((found_of[name] - tensor).abs().max())
            if scale < 1e-12:  # keys' biases: softmax makes their gradient zero
                assert difference < 1e-12, name
            else:
                worst = max(worst, difference / scale)
    return worst


@pytest.mark.parametrize(
    "step",
    [
        *("stage 1", "stage 1, older rule of negatives", "stage 1, one image alone", "stage 2, T5", "stage 2, OPT"),
        *("stage 2, T5, questions", "stage 2, OPT, accumulated"),
    ],
)
def test_ranks_are_the_joined_batch(of_ranks, joined, step: str) -> None:
    for found in of_ranks:
        difference = largest_difference(found[step], joined[step])
        print(f"{step}: largest relative difference {difference:.1e}")
        assert difference < 1e-6


def test_accumulating_alone_leaves_token_losses_as_they_are(joined) -> None:
    difference = largest_difference(joined["stage 2, OPT, accumulated"], joined["stage 2, OPT"])
    assert difference < 1e-6
    whole, halves = joined["stage 1"], stage1_step("softmax", num_parts=2)
    assert float(halves[0]["itg_loss"]) == pytest.approx(float(whole[0]["itg_loss"]), rel=1e-9)


def test_keys_of_the_contrastive_loss_get_no_gradient_on_any_rank() -> None:
    """Alone as well: an image's similarity to a text moves the image in one direction's loss, the text in the other's.

    With the images' projection frozen to constants, the texts' gradient must be that of text-to-image alone.
    """
    batch = random_batch([4, 9])
    settings = Objectives(itm_weight=0.0, itg_weight=0.0)
    task = Stage1Task(random_stage1(), nn.Identity(), settings, DECODE, "fp32")  # type: ignore[arg-type]
    [place], _ = agree(task, [batch], RECIPE.seed, 0, False)
    task(batch, place)["loss"].backward()
    bridge = random_stage1()
    weights = bridge.weights()
    image = bridge.qformer.project_image(batch.pixels_B3SS, weights)
    image_BQE = bridge.embed_queries(bridge.qformer.encode_queries(image, weights)[0])
    text_BE = bridge.embed_text(bridge.qformer.encode_text(batch.target, weights))
    logits_BN = (text_BE @ image_BQE.detach().flatten(0, 1).T).view(2, 2, -1).amax(dim=2) / bridge.temperature.detach()
    loss = nn.functional.cross_entropy(logits_BN, torch.arange(2), label_smoothing=0.1) / 2
    loss.backward()
    found, wanted = task.bridge.text_proj.weight.grad, bridge.text_proj.weight.grad
    assert found is not None and wanted is not None
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
