"""Several pairs in one sequence: losses and gradients of a plain reference; a text sees its own and earlier pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.index import index_shards
from pipeline.config import Language, load_recipe
from pipeline.data.batch import Batch
from pipeline.data.pairs import Layout, interleave
from pipeline.models.language import LanguageTower, build_language
from pipeline.training import checkpoint
from pipeline.training.stage2_task import Stage2Task
from pipeline.training.task import StepPlace
from pipeline.weights import native
from tests.pipeline.training.test_epochs import train_until_step_4_fails
from tests.pipeline.training.test_host_waits import watched
from tests.pipeline.training.test_stage2_losses import batch_of
from tests.reference.stage2 import causal_loss_sum, loss_sums_in_sequence, seq2seq_loss_sum, soft_prompts
from tests.reference.training import train_plainly
from tests.support.gloo_ranks import run_on_ranks
from tests.support.random_bridges import SHAPE, random_stage2
from tests.support.tiny_runs import ROOT, Write, lines_of, train_here, write_recipe
from tests.support.tiny_shards import write_tiny_shards

LENGTHS, PROMPTED = [5, 2, 7, 1, 4, 3], [1, 6, 3, 2, 2, 4]
SOURCES, RANGES = ["coco"] * 5 + ["web"], [(0, 3), (3, 5), (5, 6)]  # by threes: what is left of coco, and one of web


@pytest.fixture(scope="module", params=["t5", "opt"])
def language(request: pytest.FixtureRequest, towers: Path) -> LanguageTower:
    tower = build_language(Language(name=str(towers / request.param), precision="fp32"), "cpu")
    tower.model.double()
    return tower


def in_threes(language: LanguageTower, batch: Batch) -> Batch:
    seq2seq = language.kind == "seq2seq"
    return interleave(batch, SOURCES, Layout(3, SHAPE.num_query_tokens, begin=1, seq2seq=seq2seq))


def reference_sums(
    language: LanguageTower, prompts: list[Tensor], contexts: list[list[int]], targets: list[list[int]]
) -> list[Tensor]:
    """Each pair's loss. Of a causal model's later texts the first token, BOS, is left out."""
    sums: list[Tensor] = []
    for first, after in RANGES:
        texts = list(zip(contexts[first:after], targets[first:after], strict=True))
        if language.kind == "causal":
            texts[1:] = [(read[1:], told) if read else (read, told[1:]) for read, told in texts[1:]]
        loss_sum, end = (causal_loss_sum, 0) if language.kind == "causal" else (seq2seq_loss_sum, 1)
        sums += loss_sums_in_sequence(language.model, loss_sum, prompts[first:after], texts, end)
    return sums


@pytest.mark.parametrize("weights", [None, [0.5] * 5 + [2.0]], ids=["", "weights of sources"])
@pytest.mark.parametrize("prompted", [None, PROMPTED], ids=["captions", "prompts"])
def test_loss_and_every_gradient_equal_the_reference(
    language: LanguageTower, prompted: list[int] | None, weights: list[float] | None
) -> None:
    lengths = [max(2, length) for length in LENGTHS]
    plain, contexts, targets = batch_of(language, lengths, prompted)
    batch = replace(plain, loss_weights_A=torch.tensor(weights) if weights else None)
    batch = in_threes(language, batch)
    left_out = 3 if language.kind == "causal" and not prompted else 0
    assert Stage2Task.num_scored_tokens(batch) == sum(lengths) - left_out
    bridge = random_stage2(language.width)
    copies = {name: tensor.detach().clone().requires_grad_() for name, tensor in bridge.state_dict().items()}
    task = Stage2Task(bridge, nn.Identity(), language, "fp32")  # type: ignore[arg-type]
    with watched() as seen:
        loss = task(batch, StepPlace(0, 0.01, max(lengths), 0))["loss"]
        loss.backward()
    assert seen == []  # nothing makes the host wait for the device
    prompts = [soft_prompts(copies, SHAPE, image) for image in batch.pixels_B3SS]
    sums = reference_sums(language, prompts, contexts, targets)
    wanted = 0.01 * sum(weight * each for weight, each in zip(weights or [1.0] * 6, sums, strict=True))
    assert isinstance(wanted, Tensor)
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    for name, parameter in bridge.named_parameters():
        expected = copies[name].grad
        assert parameter.grad is not None and expected is not None, name
        scale, difference = float(expected.abs().max()), float((parameter.grad - expected).abs().max())
        assert difference < (1e-12 if scale < 1e-12 else 1e-6 * scale), name  # keys' biases have no gradient


def pair_losses(language: LanguageTower, prompts_BQH: Tensor, batch: Batch) -> Tensor:
    """The loss of each pair, by weights that leave out the others."""
    assert batch.interleaved
    one_at_a_time = torch.eye(len(prompts_BQH), dtype=torch.float64)
    return torch.stack(
        [language.loss_sum(prompts_BQH, batch.interleaved, batch.target, weights) for weights in one_at_a_time]
    )


@pytest.mark.parametrize("changed", ["picture", "text"])
def test_a_text_sees_its_own_and_earlier_pairs_of_its_sequence_alone(language: LanguageTower, changed: str) -> None:
    plain, _, _ = batch_of(language, [4] * 6, [3] * 6)
    generator = torch.Generator().manual_seed(0)
    size = (6, SHAPE.num_query_tokens, language.width)
    prompts = torch.randn(size, generator=generator, dtype=torch.float64)
    before = pair_losses(language, prompts, in_threes(language, plain))
    for pair in range(6):
        other_prompts, target = prompts.clone(), plain.target
        if changed == "picture":
            other_prompts[pair] *= -1
        else:
            ids = target.ids.clone()
            ids[pair, 1] = (ids[pair, 1] + 5) % 30
            target = replace(target, ids=ids)
        after = pair_losses(language, other_prompts, in_threes(language, replace(plain, target=target)))
        moved = (~torch.isclose(after, before, rtol=1e-12)).nonzero().flatten().tolist()
        [sequence] = [(first, end) for first, end in RANGES if first <= pair < end]
        assert moved == list(range(pair, sequence[1])), pair


def test_padding_of_a_shorter_sequence_is_hidden(language: LanguageTower) -> None:
    batch = in_threes(language, batch_of(language, [4, 2, 7, 3, 4, 3], PROMPTED)[0])
    assert batch.interleaved
    prompts = torch.randn(6, SHAPE.num_query_tokens, language.width, dtype=torch.float64)
    text = batch.interleaved.text
    shown = replace(text, ids=text.ids.masked_fill(~text.is_token, 17))
    before, after = (
        language.loss_sum(prompts, replace(batch.interleaved, text=each), batch.target).detach()
        for each in (text, shown)
    )
    assert not text.is_token.all() and torch.equal(before, after)


def test_the_head_of_a_causal_model_reads_scored_places_alone(towers: Path) -> None:
    language = build_language(Language(name=str(towers / "opt"), precision="fp32"), "cpu")
    batch, shapes = in_threes(language, batch_of(language, [4] * 6, PROMPTED)[0]), []
    head = language.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _head, _inputs, output: shapes.append(tuple(output.shape)))
    language.loss_sum(torch.zeros(6, 5, language.width), batch.interleaved or batch.context, batch.target)
    handle.remove()
    assert shapes == [(1, 24, language.model.config.vocab_size)] and not head._forward_pre_hooks


PAIRS = {"data": {"pairs_per_sequence": 2}, "batch": {"global_size": 8, "micro_size": 4}}


def weights_at(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(checkpoint.folder_of(folder, step) / native.FILE_NAME)


def run(ranks: int, arguments: list[str], *edits: str) -> None:
    for code, _, errors in run_on_ranks(ranks, train_here, [*arguments, *(["--set", *edits] if edits else [])]):
        assert code == 0, errors


def losses_of(folder: Path) -> list[float]:
    return [line["loss"] for line in lines_of(folder) if "split" not in line]


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_two_ranks_and_a_cut_run_are_one_whole_run(kind: str, folder: Path, write: Write) -> None:
    """With held-out losses, sample texts, and recomputed layers: to the bit after a cut, to rounding on two ranks."""
    held_out = {"manifest": str(folder / "data" / "train.json"), "every_steps": 2, "on_training_data": True}
    sections: dict[str, Any] = {**PAIRS, "validation": held_out, "qformer": {"dropout": 0.0}, "run": {"steps": 6}}
    whole, cut, ranks = (write(f"{kind}_{name}", language=kind, **sections) for name in ("whole", "cut", "ranks"))
    run(1, whole)
    assert run_on_ranks(1, train_until_step_4_fails, cut) == [1]
    run(1, cut)
    shared = ["run.layout=sharded", f"run.zero={ROOT / 'ds_configs' / 'zero3.json'}"]
    run(2, ranks, "language.activation_checkpointing=true", *shared)
    wanted, found = weights_at(folder / f"{kind}_whole", 6), weights_at(folder / f"{kind}_cut", 6)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert losses_of(folder / f"{kind}_cut") == losses_of(folder / f"{kind}_whole")
    assert losses_of(folder / f"{kind}_ranks") == pytest.approx(losses_of(folder / f"{kind}_whole"), rel=1e-5)
    assert all(0 < loss < 20 for loss in losses_of(folder / f"{kind}_whole"))


def test_one_pair_a_sequence_is_the_run_without_the_field(folder: Path, write: Write) -> None:
    without, one, two = (write(name, run={"steps": 2}, batch=PAIRS["batch"]) for name in ("without", "one", "two"))
    run(1, without)
    run(1, one, "data.pairs_per_sequence=1")
    run(1, two, "data.pairs_per_sequence=2")
    wanted, found, other = (weights_at(folder / name, 2) for name in ("without", "one", "two"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert losses_of(folder / "one") == losses_of(folder / "without") != losses_of(folder / "two")
    assert any(not torch.equal(other[name], tensor) for name, tensor in wanted.items())


def test_questions_are_asked_one_after_the_other(tmp_path: Path, towers: Path) -> None:
    write_tiny_shards(tmp_path / "shards", 4, questions_per_sample=2)
    index_shards([tmp_path / "shards"], tmp_path / "train.json")
    sections: dict[str, Any] = {**PAIRS, "data": PAIRS["data"] | {"sample": "question"}, "run": {"steps": 2}}
    arguments = write_recipe(tmp_path, towers, tmp_path / "train.json", "run", 2, "opt", **sections)
    edits = ["language.prompt='question {} answer'", "qformer.dropout=0"]
    losses, _, _ = train_plainly(load_recipe(Path(arguments[1]), edits))  # a step's samples at once
    run(1, arguments, *edits)
    assert losses_of(tmp_path / "run") == pytest.approx(losses, rel=1e-5)


def test_a_run_whose_sequences_would_change_is_not_resumed(folder: Path, write: Write) -> None:
    """Which pairs share a sequence depends on the micro batch; without sequences it may change."""
    arguments = write("sizes", **PAIRS, run={"steps": 2})
    run(1, arguments)
    [(code, _, errors)] = run_on_ranks(1, train_here, [*arguments, "--set", "run.steps=4", "batch.micro_size=8"])
    assert code == 1 and "batch.micro_size was 4 when it was saved and is 8 now" in errors


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        (["data.pairs_per_sequence=3"], "data.pairs_per_sequence 3: does not divide batch.micro_size 4"),
        (
            ["data.pairs_per_sequence=2", "data.sample=question", "data.answers=all", "language.prompt='{} answer'"],
            "has one answer to each question",
        ),
        (
            [
                "data.pairs_per_sequence=2",
                "data.sample=question",
                "qformer.question=question",
                "language.prompt='{} ?'",
            ],
            "this Q-Former reads a question",
        ),
    ],
)
def test_a_recipe_that_cannot_have_sequences_is_refused_in_one_line(edits: list[str], told: str, write: Write) -> None:
    path = Path(write("refused", batch=PAIRS["batch"])[1])
    with pytest.raises(ValueError, match="pairs_per_sequence") as refused:
        load_recipe(path, edits)
    assert told in str(refused.value) and "\n" not in str(refused.value)


def test_stage_1_and_a_model_with_too_few_positions_refuse_sequences(write: Write) -> None:
    stage1 = Path(write("stage1", stage=1, language=None, batch=PAIRS["batch"])[1])
    with pytest.raises(ValueError, match="stage 1 has no language model that reads several pictures"):
        load_recipe(stage1, ["data.pairs_per_sequence=2"])
    long = write("long", batch=PAIRS["batch"])
    edits = ["data.pairs_per_sequence=4", "data.max_text_tokens=60"]
    [(code, _, errors)] = run_on_ranks(1, train_here, [*long, "--set", *edits])
    assert code == 1 and "each has 4 soft prompts, 60 tokens of text and 1 of its end" in errors.splitlines()[-1]
