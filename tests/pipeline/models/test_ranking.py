"""Answers of a closed list: the best is that of a plain computation, which reads every answer alone."""

import random
from pathlib import Path

import pytest
import torch

from pipeline.config import Language
from pipeline.models import ranking
from pipeline.models.language import LanguageTower, build_language
from pipeline.models.ranking import Ranking
from tests.reference.ranking import best_answer
from tests.support.tiny_towers import TEXT

TEMPLATE = "question : {} short answer :"
QUESTIONS = ["which colour is it ?", "is it dark", "", "is the number 7 or 8 or 9 in the picture of a photo"]
WORDS = [*TEXT.split(), *"0123456789"]
DRAWS = random.Random(0)
ANSWERS = list(dict.fromkeys(" ".join(DRAWS.choices(WORDS, k=DRAWS.choice([1, 1, 2, 3, 5]))) for _ in range(60)))


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    tower = build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")
    tower.model.double()
    return tower


def token_ids(language: LanguageTower, question: str) -> tuple[list[int], list[list[int]]]:
    """Of the prompt, and of every answer after it with its end."""
    tokenizer, prompt = language.tokenizer, TEMPLATE.replace("{}", question)
    context = tokenizer(prompt).input_ids
    if language.kind == "seq2seq":
        return context, [tokenizer(answer).input_ids for answer in ANSWERS]
    return context, [tokenizer(f"{prompt} {answer}\n").input_ids[len(context) :] for answer in ANSWERS]


@pytest.mark.parametrize("num_candidates", [1, 7, 10_000])
@pytest.mark.parametrize("at_once", [3, 128])
def test_the_best_answer_is_that_of_every_answer_read_alone(
    language: LanguageTower, num_candidates: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "AT_ONCE", at_once)
    ready = Ranking(language, ANSWERS, TEMPLATE, "\n", num_candidates)
    generator, found = torch.Generator().manual_seed(1), set()
    for question in [*QUESTIONS, *QUESTIONS]:
        prompts_QH = torch.randn(4, language.width, generator=generator, dtype=torch.float64)
        context, ids = token_ids(language, question)
        wanted = ANSWERS[best_answer(language.kind, language.model, prompts_QH, context, ids, num_candidates)]
        assert ready.best(prompts_QH[None], TEMPLATE.replace("{}", question)) == wanted
        found.add(wanted)
    assert len(found) > 1


def test_scores_are_log_likelihoods_of_whole_answers_and_their_end(language: LanguageTower) -> None:
    """Exactly, in every part of the list, and also without soft prompts."""
    from tests.reference.stage2 import causal_loss_sum, seq2seq_loss_sum

    loss_sum = causal_loss_sum if language.kind == "causal" else seq2seq_loss_sum
    ready, question = Ranking(language, ANSWERS, TEMPLATE, "\n", 99), QUESTIONS[0]
    context, ids = token_ids(language, question)
    for prompts_QH in (torch.randn(4, language.width, dtype=torch.float64), torch.zeros(0, language.width).double()):
        with torch.no_grad():
            read = ready._read(prompts_QH[None] if len(prompts_QH) else None, TEMPLATE.replace("{}", question))
            first_K = torch.log_softmax(read.first_V, dim=0)[ready.tokens.ids[:, 0]]
            for some in torch.arange(len(ANSWERS)).split(20):
                wanted = [-float(loss_sum(language.model, prompts_QH, context, ids[place])) for place in some]
                assert ready._scores(some, first_K, read) == pytest.approx(wanted, rel=1e-6)


def test_equal_answers_give_the_first_of_the_list(language: LanguageTower) -> None:
    """Words that the tokenizer does not know are one and the same to the model."""
    ready = Ranking(language, ["unheard", "zebra", "giraffe"], TEMPLATE, "\n", 2)
    assert ready.best(None, TEMPLATE.replace("{}", "which")) == "unheard"


def test_an_answer_that_is_too_long_and_a_model_that_cannot_be_read_once_are_refused(
    language: LanguageTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"--answers: 'red red .*' has 10\d tokens, at most 64 are ranked"):
        Ranking(language, ["blue", "red " * 99 + "red"], TEMPLATE, "\n", 9)
    monkeypatch.setattr(language, "cache_can_be_copied", False)
    with pytest.raises(ValueError, match="have no keys and values that can be copied"):
        Ranking(language, ["blue", "red"], TEMPLATE, "\n", 9)
