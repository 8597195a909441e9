"""Each objective against torch's own losses, and the law by which hard negatives are drawn."""

import pytest
import torch
from torch.nn import functional

from pipeline.objectives import contrastive, generation, matching


def test_similarity_is_the_best_querys_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    image_BQE = functional.normalize(torch.randn(3, 4, 6, generator=generator), dim=-1)
    text_NE = functional.normalize(torch.randn(5, 6, generator=generator), dim=-1)
    scores = contrastive.similarities(image_BQE, text_NE)
    expected = functional.cosine_similarity(image_BQE[:, None], text_NE[None, :, None], dim=-1).amax(dim=2)
    torch.testing.assert_close(scores, expected)


def test_similarity_stays_exact_under_autocast() -> None:
    image_BQE = functional.normalize(torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive.similarities(image_BQE, image_BQE[:, 0])
    assert torch.equal(found, contrastive.similarities(image_BQE, image_BQE[:, 0]))


def test_itc_of_distinct_images_is_label_smoothed_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    image_to_text, text_to_image = torch.randn(2, 4, 8, generator=generator)
    temperature, ids = torch.tensor([0.3]), torch.arange(10, 18)
    targets = contrastive.targets(ids[4:], ids, 4, 0.1, torch.float32)
    found = contrastive.itc_loss(image_to_text, text_to_image, temperature, targets)
    labels = torch.arange(4, 8)
    expected = sum(
        functional.cross_entropy(logits / 0.3, labels, label_smoothing=0.1) / 2
        for logits in (image_to_text, text_to_image)
    )
    torch.testing.assert_close(found, expected)


def test_targets_are_spread_over_equal_ids() -> None:
    ids = torch.tensor([7, 8, 7, 9])
    targets = contrastive.targets(ids, ids, 0, 0.1, torch.float64)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert targets[0].tolist() == pytest.approx([0.475, 0.025, 0.475, 0.025])
    assert targets[1].tolist() == pytest.approx([0.025, 0.925, 0.025, 0.025])


@pytest.mark.parametrize("rule", ["softmax", "softmax_plus_epsilon"])
def test_negatives_follow_the_softmax_without_the_positives(rule: str) -> None:
    draws = 40_000
    logits = torch.tensor([2.0, -6.0, 0.5, 1.0, -1.0])
    is_positive = torch.tensor([True, False, False, True, False])
    uniform = torch.rand(draws, 5, generator=torch.Generator().manual_seed(3))
    drawn = matching.hard_negatives(logits.expand(draws, -1), is_positive.expand(draws, -1), uniform, rule)  # type: ignore[arg-type]
    chances = logits.softmax(dim=0) + (1e-4 if rule == "softmax_plus_epsilon" else 0.0)
    chances = chances.masked_fill(is_positive, 0.0)
    expected = draws * chances / chances.sum()
    counts = torch.bincount(drawn, minlength=5)
    assert counts[is_positive].sum() == 0
    likely = expected > 0
    chi_squared = float(((counts - expected)[likely] ** 2 / expected[likely]).sum())
    assert chi_squared < 13.8  # 0.999 quantile with 2 degrees of freedom


def test_extreme_numbers_never_draw_a_positive() -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4], [-1e4, 1e4, 0.0]])
    is_positive = torch.tensor([[True, False, False], [False, True, True]])
    for value in (0.0, 1.0):
        drawn = matching.hard_negatives(logits, is_positive, torch.full((2, 3), value), "softmax")
        assert not is_positive[torch.arange(2), drawn].any()


def test_a_lone_pair_has_no_negative_and_gets_itself() -> None:
    drawn = matching.hard_negatives(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), torch.rand(1, 1), "softmax")
    assert drawn.tolist() == [0]


def test_itm_is_two_class_cross_entropy_and_its_accuracy_of_always_no_is_two_thirds() -> None:
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([matching.MATCH] * 3 + [0] * 6)
    torch.testing.assert_close(matching.itm_loss(logits, labels), functional.cross_entropy(logits, labels))
    assert float(matching.itm_accuracy(torch.tensor([[1.0, 0.0]]).expand(9, -1), labels)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_itg_is_cross_entropy_with_and_without_smoothing_in_fp32_at_least(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(6, 11, generator=generator)).to(dtype).requires_grad_()
    labels = torch.tensor([4, 5, 6, 3, 7, 3])
    values = logits.to(torch.promote_types(dtype, torch.float32))
    for smoothing in (0.0, 0.1):
        smoothed, exact = generation.itg_loss_sums(logits, labels, smoothing)
        expected = functional.cross_entropy(values, labels, label_smoothing=smoothing, reduction="sum")
        torch.testing.assert_close(smoothed, expected)
        found, wanted = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (smoothed, expected))
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0.01 if dtype == torch.bfloat16 else 1e-5)
        torch.testing.assert_close(exact, functional.cross_entropy(values, labels, reduction="sum"))
        assert not exact.requires_grad
