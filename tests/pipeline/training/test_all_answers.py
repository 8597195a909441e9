"""Training on all answers to a question: the plain weighted loss, which is the expected loss of one drawn answer."""

import random
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.index import index_shards
from pipeline.config import Data, Language, load_recipe
from pipeline.data.batch import Batch
from pipeline.data.prompted import collate_prompted_causal, collate_prompted_seq2seq
from pipeline.data.records import Texts
from pipeline.data.stream import Sample, draw_sample
from pipeline.models.language import LanguageTower, build_language
from pipeline.training import checkpoint
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace
from pipeline.weights import native
from tests.reference.stage2 import all_answers_loss, causal_loss_sum, seq2seq_loss_sum, soft_prompts
from tests.reference.training import train_plainly
from tests.support.gloo_ranks import run_on_ranks
from tests.support.random_bridges import SHAPE, random_images, random_stage2
from tests.support.tiny_runs import ROOT, lines_of, train_here, write_recipe
from tests.support.tiny_shards import write_tiny_shards

TEMPLATE = "question : {} answer :"
ASKED = [
    ("which colour", {"red": 4, "dark red": 2, "light blue": 1, "a dark red picture": 1}),
    ("is it dark", {"yellow": 1}),
    ("which number", {"7": 3, "8 9": 1}),
]
SOURCES = [0.25, 1.0, 1.0]  # weights of the questions' sources
PIXELS = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    tower = build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")
    tower.model.double()
    return tower


def samples(asked: list[tuple[str, dict[str, int]]], answers: Any) -> list[Sample]:
    data = Data(manifest=Path("none"), sample="question", answers=answers)
    texts = [Texts(question, tuple(given), tuple(given.values())) for question, given in asked]
    return [draw_sample("key", PIXELS, each, 0, random.Random(0), data, 8) for each in texts]


def batch_of(language: LanguageTower, told: list[Sample]) -> Batch:
    tokenizer = language.tokenizer
    if language.kind == "causal":
        batch = collate_prompted_causal(tokenizer, 32, "\n", TEMPLATE)(told)
    else:
        batch = collate_prompted_seq2seq(tokenizer, 32, TEMPLATE)(told)
    return replace(batch, pixels_B3SS=random_images(len(told)))


def loss_of(language: LanguageTower, batch: Batch, most_texts: int = 0) -> tuple[Tensor, nn.Module]:
    bridge = random_stage2(language.width)
    task = Stage2Task(bridge, nn.Identity(), language, "fp32", asks=True)  # type: ignore[arg-type]
    found = task(batch, StepPlace(0, 1.0, batch.target.ids.shape[1], 0, most_texts=most_texts))
    return found["loss"], bridge


def ids_of(language: LanguageTower, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Context and target as the model's own tokenizer makes them of whole strings."""
    tokenizer, prompt = language.tokenizer, TEMPLATE.replace("{}", question)
    if language.kind == "seq2seq":
        return tokenizer(prompt).input_ids, tokenizer(answer).input_ids
    context = tokenizer(prompt).input_ids
    return context, tokenizer(f"{prompt} {answer}\n").input_ids[len(context) :]


@pytest.mark.parametrize("most_texts", [0, 40], ids=["own parts", "parts of a rank with more texts"])
def test_loss_and_every_gradient_equal_the_reference(language: LanguageTower, most_texts: int) -> None:
    """In 3 parts of at most 3 answers; in 14 parts, half of them empty, where another rank has 40 texts."""
    told = [replace(each, loss_weight=weight) for each, weight in zip(samples(ASKED, "all"), SOURCES, strict=True)]
    batch = batch_of(language, told)
    assert batch.answers == (4, 1, 2) and batch.target.ids.shape[0] == 7 and batch.loss_weights_A is not None
    assert batch.loss_weights_A.tolist() == [0.125, 0.0625, 0.03125, 0.03125, 1.0, 0.75, 0.25]
    rows: list[int] = []
    loss_sum = type(language).loss_sum

    def counted(self: Any, prompts_AQH: Tensor, *others: Any) -> Tensor:
        rows.append(len(prompts_AQH))
        return loss_sum(self, prompts_AQH, *others)

    with mock.patch.object(type(language), "loss_sum", counted):
        found, bridge = loss_of(language, batch, most_texts)
        forward = len(rows)
        found.backward()
    assert forward == (14 if most_texts else 3) and len(rows) == 2 * forward and max(rows) <= 3
    weights = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in random_stage2(language.width).state_dict().items()
    }
    one = causal_loss_sum if language.kind == "causal" else seq2seq_loss_sum
    losses = []
    for image, (question, given) in zip(random_images(3), ASKED, strict=True):
        prompts = soft_prompts(weights, SHAPE, image)
        losses.append([one(language.model, prompts, *ids_of(language, question, answer)) for answer in given])
    wanted = all_answers_loss(losses, [list(given.values()) for _, given in ASKED], SOURCES)
    wanted.backward()
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    for name, parameter in bridge.named_parameters():
        expected = weights[name].grad
        assert parameter.grad is not None and expected is not None, name
        scale = max(float(expected.abs().max()), 1e-9)
        assert float((parameter.grad - expected).abs().max()) < 1e-6 * scale, name


def test_the_expected_loss_of_one_drawn_answer_is_the_loss_of_all(language: LanguageTower) -> None:
    """Every choice of answers to all questions of a batch, each with its probability."""
    with torch.no_grad():
        wanted, _ = loss_of(language, batch_of(language, samples(ASKED, "all")))
        expected = 0.0
        for chosen in product(*(given.items() for _, given in ASKED)):
            told = [(question, {answer: 1}) for (question, _), (answer, _) in zip(ASKED, chosen, strict=True)]
            chance = prod(count / sum(given.values()) for (_, count), (_, given) in zip(chosen, ASKED, strict=True))
            expected += chance * float(loss_of(language, batch_of(language, samples(told, "one")))[0])
    assert float(wanted) == pytest.approx(expected, rel=1e-9)


def train_until_step_2_fails(arguments: list[str]) -> int:
    from pipeline.training import loop

    train_step = loop.train_step

    def fail(engine: Any, batches: Any, places: Any, recipe: Any, progress: Any, ahead: Any) -> Any:
        if progress.step == 2:
            raise OSError("the machine is gone")
        return train_step(engine, batches, places, recipe, progress, ahead)

    with mock.patch.object(loop, "train_step", fail):
        return train_here(arguments)[0]


@pytest.mark.parametrize("layout", ["replicated", "sharded"])
def test_two_ranks_train_as_one_plain_process_does_and_resume_to_the_bit(
    tmp_path: Path, towers: Path, layout: str
) -> None:
    """Questions of two answers and of one: ranks have other numbers of texts, and share a language model in step."""
    for source in ("vg", "vqav2"):
        write_tiny_shards(tmp_path / source, 3, questions_per_sample=2, source=source)
    index_shards([tmp_path / "vg", tmp_path / "vqav2"], tmp_path / "train.json")
    zero = ROOT / "ds_configs" / ("zero3.json" if layout == "sharded" else "zero1.json")
    sections = {
        "run": {"steps": 4, "layout": layout, "zero": str(zero)},
        "data": {"sample": "question", "answers": "all", "loss_weights": {"vg": 0.25}},
        "qformer": {"dropout": 0.0, "question": "question"},
        "batch": {"global_size": 4, "micro_size": 1},
    }
    edits = ["language.prompt='question : {} answer :'"]
    found: dict[str, dict[str, Tensor]] = {}
    for name in ("whole", "cut"):
        arguments = write_recipe(tmp_path, towers, tmp_path / "train.json", name, 2, "t5", **sections)
        arguments += ["--set", *edits]
        if name == "cut":
            assert run_on_ranks(2, train_until_step_2_fails, arguments) == [1, 1]
            assert checkpoint.complete_checkpoints(tmp_path / name)[-1].name == "step_00000002"
        for code, _, errors in run_on_ranks(2, train_here, arguments):
            assert code == 0, errors
        found[name] = load_file(checkpoint.folder_of(tmp_path / name, 4) / native.FILE_NAME)
    assert all(torch.equal(found["cut"][name], tensor) for name, tensor in found["whole"].items())
    losses, _, weights = train_plainly(load_recipe(Path(arguments[1]), edits))
    assert [line["loss"] for line in lines_of(tmp_path / "whole")] == pytest.approx(losses, rel=1e-5)
    # AdamW turns rounding of near-zero gradients into whole steps, of 1e-3 each.
    assert all(torch.allclose(tensor, weights[name], rtol=0, atol=1e-3) for name, tensor in found["whole"].items())
