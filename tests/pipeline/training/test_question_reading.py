"""A Q-Former that reads questions: losses and gradients of the plain reference, and what a question changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Language
from pipeline.models.language import LanguageTower, build_language
from pipeline.models.stage2 import Stage2Bridge
from pipeline.tokens import Tokens, pad_tokens
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace
from tests.reference.stage2 import causal_loss_sum, seq2seq_loss_sum, soft_prompts
from tests.support.random_bridges import PAD, SHAPE, random_batch, random_images, random_stage2

QUESTIONS = [[2, 7, 9, 3], [2, 3], [2, 11, 5, 8, 6, 40, 3], [2, 7, 9, 3]]
ANSWERS, CONTEXTS = [[5, 1], [6, 7, 1], [9, 1], [5, 1]], [[3, 4, 1], [8, 1], [3, 4, 5, 1], [3, 4, 1]]
WIDTH = 16


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    tower = build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")
    tower.model.double()
    return tower


def test_loss_and_every_gradient_equal_the_reference(language: LanguageTower) -> None:
    bridge = random_stage2(language.width, reads_questions=True)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in bridge.state_dict().items()}
    texts = {"context": pad_tokens(CONTEXTS, PAD), "target": pad_tokens(ANSWERS, PAD)}
    batch = replace(random_batch([1] * len(QUESTIONS)), **texts, question=pad_tokens(QUESTIONS, PAD))
    task = Stage2Task(bridge, nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    tokens = sum(map(len, ANSWERS))
    found = task(batch, StepPlace(0, 1 / tokens, 3, 0))["loss"]
    found.backward()
    loss_sum = causal_loss_sum if language.kind == "causal" else seq2seq_loss_sum
    losses = []
    for image, question, context, answer in zip(batch.pixels_B3SS, QUESTIONS, CONTEXTS, ANSWERS, strict=True):
        losses.append(loss_sum(language.model, soft_prompts(weights, SHAPE, image, question), context, answer))
    wanted = torch.stack(losses).sum() / tokens
    wanted.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    for name, parameter in bridge.named_parameters():
        expected = weights[name].grad
        assert parameter.grad is not None and expected is not None, f"{name} is in the bridge and must be trained"
        scale = max(float(expected.abs().max()), 1e-9)
        assert float((parameter.grad - expected).abs().max()) < 1e-6 * scale, name


def prompts(bridge: Stage2Bridge, question: Tokens | None, images: int = 4) -> Tensor:
    with torch.no_grad():
        return bridge(random_images(images), question)


def test_the_question_changes_the_soft_prompts_and_padding_does_not() -> None:
    bridge = random_stage2(WIDTH, reads_questions=True).eval()
    asked = pad_tokens(QUESTIONS, PAD)
    found = prompts(bridge, asked)
    torch.testing.assert_close(prompts(bridge, asked.padded_to(24)), found, rtol=1e-9, atol=1e-12)
    other = prompts(bridge, pad_tokens([[2, 7, 10, 3], *QUESTIONS[1:]], PAD))
    assert float((other[0] - found[0]).abs().max()) > 1e-3
    assert torch.equal(other[1:], found[1:]), "a question reaches no other picture"
    assert float((prompts(bridge, None) - found).abs().max()) > 1e-3


def test_questions_about_one_picture_share_it() -> None:
    bridge = random_stage2(WIDTH, reads_questions=True).eval()
    images, of = random_images(2), torch.tensor([0, 1, 1, 0])
    asked = pad_tokens(QUESTIONS, PAD)
    with torch.no_grad():
        shared, own = bridge(images, asked, of), bridge(images[of], asked)
        torch.testing.assert_close(shared, own, rtol=1e-9, atol=1e-12)
        plain = random_stage2(WIDTH).eval()
        torch.testing.assert_close(plain(images, None, of), plain(images[of]), rtol=1e-9, atol=1e-12)
