"""Stage 1's losses and gradients equal the plain reference's, for captions of any lengths and repeated images."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Objectives
from pipeline.data.batch import Batch
from pipeline.distributed.collectives import Exchange
from pipeline.models import attention_masks
from pipeline.models.qformer import QFormer
from pipeline.training.stage1_task import WRITTEN, Stage1Task
from pipeline.training.task import StepPlace
from tests.reference.qformer import layer_norm
from tests.reference.stage1 import LN_VISION_EPS, generation_logits, stage1_losses
from tests.support.random_bridges import DECODE, SHAPE, random_batch, random_stage1

LOSSES = ("itc_loss", "itm_loss", "itg_loss")
NEGATIVES_SEED = 11
TOKENS = "tokens of the image encoder"


def production(batch: Batch, settings: Objectives, loss: str) -> tuple[Tensor, dict[str, Tensor]]:
    """One loss and its gradients by parameter name, zero where it does not depend on one; and of the image's tokens."""
    bridge = random_stage1()
    tokens_BPI = batch.pixels_B3SS.clone().requires_grad_()
    batch = replace(batch, pixels_B3SS=tokens_BPI)
    task = Stage1Task(bridge, nn.Identity(), settings, DECODE, "fp32")  # type: ignore[arg-type]
    tokens = max(1, Stage1Task.num_scored_tokens(batch))
    values = task(batch, StepPlace(0, 1 / tokens, batch.target.ids.shape[1], NEGATIVES_SEED))
    values[loss].backward()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in (*bridge.named_parameters(), (TOKENS, tokens_BPI))
    }
    return values[loss].detach(), gradients


def reference(batch: Batch, settings: Objectives, loss: str, padded_to: int) -> tuple[Tensor, dict[str, Tensor]]:
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in random_stage1().state_dict().items()}
    weights[TOKENS] = batch.pixels_B3SS.clone().requires_grad_()
    text, pairs = batch.target.padded_to(padded_to), len(batch.image_ids_B)
    uniform_2NN = torch.rand((2, pairs, pairs), generator=torch.Generator().manual_seed(NEGATIVES_SEED))
    values = stage1_losses(
        weights,
        SHAPE,
        weights[TOKENS],
        text.ids,
        text.is_token,
        batch.image_ids_B.tolist(),
        uniform_2NN,
        decode_token_id=DECODE,
        smoothing=settings.label_smoothing,
        rule=settings.negatives,
    )
    values[loss].backward()
    gradients = {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for name, tensor in weights.items()
    }
    return values[loss].detach(), gradients


def largest_difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest difference of a gradient's element, relative to that tensor's largest; names must agree."""
    assert found.keys() == wanted.keys()
    worst = 0.0
    for name, tensor in wanted.items():
        scale = float(tensor.abs().max())
        difference = float((found[name] - tensor).abs().max())
        if scale < 1e-12:  # keys' biases: softmax makes their gradient zero
            assert difference < 1e-12, name
        else:
            worst = max(worst, difference / scale)
    return worst


BATCHES = {
    "captions of 1 to 32 tokens": ([1, 2, 3, 9, 20, 32], None),
    "an image twice": ([4, 12, 7, 5], [7, 8, 7, 9]),
    "one image alone": ([4, 12, 7], [7, 7, 7]),
    "one pair": ([12], None),
    "one pair of one token": ([1], None),
    "two pairs": ([32, 5], None),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", BATCHES)
def test_loss_and_every_gradient_equal_the_reference(name: str, loss: str) -> None:
    lengths, image_ids = BATCHES[name]
    batch, settings = random_batch(lengths, image_ids=image_ids), Objectives()
    found, found_gradients = production(batch, settings, loss)
    wanted, wanted_gradients = reference(batch, settings, loss, padded_to=32)
    difference = largest_difference(found_gradients, wanted_gradients)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6, abs=1e-12)
    assert difference < 1e-6
    print(f"{name}: {loss} {float(found):.6f}, largest relative difference of a gradient {difference:.1e}")


def test_the_older_rule_of_negatives_equals_the_reference() -> None:
    batch = random_batch([6, 11, 3, 8], image_ids=[1, 2, 1, 3])
    settings = Objectives(negatives="softmax_plus_epsilon", label_smoothing=0.0)
    found, found_gradients = production(batch, settings, "itm_loss")
    wanted, wanted_gradients = reference(batch, settings, "itm_loss", padded_to=12)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    assert largest_difference(found_gradients, wanted_gradients) < 1e-6


def test_the_sum_is_weighted() -> None:
    batch, settings = random_batch([4, 8]), Objectives(itc_weight=0.5, itm_weight=2.0, itg_weight=0.25)
    task = Stage1Task(random_stage1(), nn.Identity(), settings, DECODE, "fp32")  # type: ignore[arg-type]
    with torch.no_grad():
        values = task(batch, StepPlace(0, 1.0, 8, NEGATIVES_SEED))
    expected = 0.5 * values["itc_loss"] + 2.0 * values["itm_loss"] + 0.25 * values["itg_loss"]
    assert float(values["loss"]) == pytest.approx(float(expected), rel=1e-12)


def test_without_itg_the_text_is_not_generated_and_all_else_is_as_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 6 of the paper. The loss and every gradient are those of ITC and ITM; ITG's pass and head are not run."""
    batch, settings = random_batch([4, 12, 7]), Objectives(itg_weight=0.0)
    with_itg = {loss: reference(batch, Objectives(), loss, padded_to=12) for loss in ("itc_loss", "itm_loss")}
    wanted = {name: with_itg["itc_loss"][1][name] + with_itg["itm_loss"][1][name] for name in with_itg["itc_loss"][1]}
    for owner, function in ((attention_masks, "causal_after_queries"), (QFormer, "predict_tokens")):
        monkeypatch.setattr(owner, function, lambda *_: pytest.fail("ITG was computed"))
    found, gradients = production(batch, settings, "loss")
    assert float(found) == pytest.approx(sum(float(loss) for loss, _ in with_itg.values()), rel=1e-6)
    assert largest_difference(gradients, wanted) < 1e-6
    assert not any(gradients[name].any() for name in gradients if "language_head" in name)


def test_each_sample_has_its_own_dropout() -> None:
    bridge = random_stage1()
    bridge.qformer.dropout.p = 0.5
    weights = bridge.weights()
    image = bridge.qformer.project_image(random_batch([2]).pixels_B3SS.expand(2, -1, -1), weights)
    rows_BQD, _ = bridge.qformer.train().encode_queries(image, weights)
    assert float((rows_BQD[0] - rows_BQD[1]).detach().abs().max()) > 0.01


def test_a_bf16_task_computes_in_bf16_by_itself_and_its_losses_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing around it may matter: the engine turns an outer autocast off."""
    batch = random_batch([6, 11, 3])
    batch = Batch(batch.pixels_B3SS.float(), batch.image_ids_B, batch.context, batch.target, 0)
    bridge, seen = random_stage1().float(), {}
    heads = {name: getattr(bridge, name) for name in ("vision_proj", "text_proj", "itm_head")}
    for name, module in (heads | {"layer_norm": bridge.qformer.layers[0].query_ffn.layer_norm}).items():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output.dtype}))
    linear, products = nn.functional.linear, []
    task = Stage1Task(bridge, nn.Identity(), Objectives(), DECODE, "bf16")  # type: ignore[arg-type]
    exact = Stage1Task(random_stage1().float(), nn.Identity(), Objectives(), DECODE, "fp32")  # type: ignore[arg-type]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        place = StepPlace(0, 1 / 17, 11, NEGATIVES_SEED)
        wanted = exact(batch, place)
        monkeypatch.setattr(nn.functional, "linear", lambda *rest: products.append(linear(*rest)) or products[-1])
        values = task(batch, place)
    assert seen == dict.fromkeys([*heads, "layer_norm"], torch.float32)
    num_in_fp32 = sum(product.dtype == torch.float32 for product in products)
    assert num_in_fp32 == len(heads) and {product.dtype for product in products} == {torch.float32, torch.bfloat16}
    for name in LOSSES:
        assert values[name].dtype == torch.float32 and not torch.equal(values[name], wanted[name])
        assert float(values[name]) == pytest.approx(float(wanted[name]), rel=0.1)


@pytest.mark.parametrize("trained", [True, False])
def test_a_trained_encoders_tokens_are_exchanged_as_they_are_so_gradients_add_up_in_fp32(
    monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    """A frozen one's in the products' number format: half the bytes."""
    batch, sent, rows = random_batch([6, 11, 3]), [], Exchange.rows
    batch = replace(batch, pixels_B3SS=batch.pixels_B3SS.float().requires_grad_(trained))
    monkeypatch.setattr(Exchange, "rows", lambda self, tokens: sent.append(tokens.dtype) or rows(self, tokens))
    task = Stage1Task(random_stage1().float(), nn.Identity(), Objectives(), DECODE, "bf16")  # type: ignore[arg-type]
    task(batch, StepPlace(0, 1 / 17, 11, NEGATIVES_SEED))
    assert sent == [torch.float32 if trained else torch.bfloat16]


def test_an_fp32_bridge_takes_an_fp16_towers_tokens() -> None:
    batch = random_batch([6, 11, 3])
    half = replace(batch, pixels_B3SS=batch.pixels_B3SS.half())
    task = Stage1Task(random_stage1().float(), nn.Identity(), Objectives(), DECODE, "fp32")  # type: ignore[arg-type]
    place = StepPlace(0, 1 / 17, 11, NEGATIVES_SEED)
    with torch.no_grad():
        values, wanted = task(half, place), task(replace(half, pixels_B3SS=half.pixels_B3SS.float()), place)
    assert all(torch.equal(values[name], wanted[name]) for name in LOSSES)


def test_the_logged_temperature_is_the_one_that_the_step_began_with() -> None:
    batch, bridge = random_batch([4, 12, 7]), random_stage1()
    task = Stage1Task(bridge, nn.Identity(), Objectives(), DECODE, "fp32")  # type: ignore[arg-type]
    values = task(batch, StepPlace(0, 0.1, batch.target.ids.shape[1], NEGATIVES_SEED))
    before = bridge.temperature.item()
    with torch.no_grad():
        bridge.temperature += 1  # what an optimizer does, in place
    assert values["temperature"].item() == before


def test_texts_are_the_reference_s_likeliest_tokens_one_after_the_other() -> None:
    """Written from no caption at all: whatever the batch's texts are, and each picture's alone."""
    batch, bridge = random_batch([5, 3, 4]), random_stage1()
    task = Stage1Task(bridge, nn.Identity(), Objectives(), DECODE, "fp32")  # type: ignore[arg-type]
    with torch.no_grad():
        written = task(batch, None)["texts"]
    weights = bridge.state_dict()
    for tokens_PI, found in zip(batch.pixels_B3SS, written, strict=True):
        image_PI = layer_norm(weights, "ln_vision", tokens_PI, LN_VISION_EPS)
        ids = [DECODE]
        for _ in range(WRITTEN):
            real_L = torch.ones(len(ids), dtype=torch.bool)
            ids.append(int(generation_logits(weights, SHAPE, image_PI, torch.tensor(ids), real_L)[-1].argmax()))
        assert found.tolist() == ids[1:]
    assert len({tuple(row) for row in written.tolist()}) == 3, "a text that ignores its picture is the same for all"
