"""Planned bytes over the network against those that real gloo ranks send in a step."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pipeline.config import Language, for_ranks, load_recipe
from pipeline.cost.dry_run import UnweightedRecipe
from pipeline.cost.states import Tensors, sharded_language, tensors_of
from pipeline.cost.traffic import gradients_and_weights, stage1_features
from pipeline.cost.zero_policy import read_policy
from pipeline.models.language import language_on_meta
from pipeline.training.engine import resolve_ds_config
from tests.support.counted_traffic import counted_traffic
from tests.support.gloo_ranks import run_on_ranks
from tests.support.paper_sizes import save_configs
from tests.support.tiny_runs import ROOT, train_here, write_recipe
from tests.support.tiny_shards import tiny_manifest

AGREED_BYTES = 2_000  # a step's integers, gradient norm and logged means
# DeepSpeed keeps what is small, or used again soon: without that, its gathers are as the law has them.
NOTHING_KEPT = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
    "stage3_prefetch_bucket_size": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    tiny_manifest(folder / "data", 40, samples_per_shard=16)
    for name in ("zero1", "zero2", "zero3"):
        policy = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())
        policy["zero_optimization"] |= {"reduce_bucket_size": 1_000_000} | (NOTHING_KEPT if name == "zero3" else {})
        (folder / f"{name}.json").write_text(json.dumps(policy))
    return folder


def sent_in_a_step(arguments: list[str]) -> tuple[dict[str, float], int]:
    """Bytes that this rank sends in its second step, by collective, and the tokens to which texts were padded."""
    from pipeline.training import loop

    steps: list[dict[str, float]] = []
    lengths: list[int] = []
    train_step = loop.train_step

    def watched(engine: Any, batches: Any, places: Any, *others: Any) -> Any:
        before = dict(sent)
        values = train_step(engine, batches, places, *others)
        steps.append({name: size - before.get(name, 0.0) for name, size in sent.items()})
        lengths.append(places[0].longest_target)
        return values

    # From the start: DeepSpeed looks collectives up when its engine is made.
    with counted_traffic() as sent, mock.patch.object(loop, "train_step", watched):
        code, _, errors = train_here(arguments)
    assert code == 0, errors
    return steps[1], lengths[1]


CASES = [
    ("stage 1", "zero1", 2, 1),
    ("stage 1", "zero2", 3, 2),
    ("opt", "zero2", 2, 2),
    ("opt", "zero3", 2, 2),
    ("opt sharded", "zero3", 3, 1),
]


@pytest.mark.parametrize(("kind", "zero", "ranks", "passes"), CASES)
def test_a_step_sends_what_is_planned(
    folder: Path, towers: Path, kind: str, zero: str, ranks: int, passes: int
) -> None:
    stage, language = (1, None) if kind == "stage 1" else (2, "opt")
    sharded = kind.endswith("sharded")
    run = {"zero": str(folder / f"{zero}.json"), "steps": 2, "layout": "sharded" if sharded else "replicated"}
    batch = {"global_size": 4 * ranks * passes, "micro_size": 4, "accumulation": passes}
    data = folder / "data" / "train.json"
    arguments = write_recipe(folder, towers, data, f"{kind} {zero}", stage, language, batch=batch, run=run)
    recipe = for_ranks(load_recipe(Path(arguments[1])), ranks)
    unweighted = UnweightedRecipe(recipe)
    frozen = tensors_of(unweighted.task.towers.language.model) if sharded else None
    policy = read_policy(resolve_ds_config(recipe, ranks))
    planned = gradients_and_weights(tensors_of(unweighted.task.bridge), frozen, policy, ranks, passes)
    answers = run_on_ranks(ranks, sent_in_a_step, arguments)
    if stage == 1:
        sent_by_task = unweighted.run(4, (0, answers[0][1]), ranks).sent
        planned += stage1_features(sent_by_task, passes)
    expected = sum(each.num_bytes for each in planned)
    sent = [sum(answer[0].values()) for answer in answers]
    # Which rank sends how many negatives is drawn; the mean over ranks is drawn too, among these few.
    drawn = sum(each.num_bytes for each in planned if "negatives" in each.purpose)
    assert sum(sent) / ranks == pytest.approx(expected, rel=0.02, abs=AGREED_BYTES + drawn)
    exchanged = sum(answer[0].get("all_to_all_single", 0) for answer in answers) / ranks
    assert sum(sent) / ranks - exchanged == pytest.approx(expected - drawn, rel=0.02, abs=AGREED_BYTES)


def test_sharding_trades_memory_for_traffic_and_hpz_keeps_it_within_nodes(tmp_path: Path) -> None:
    """FlanT5-XXL on 16 ranks: a rank's bytes, and those that it sends between nodes and in all."""
    save_configs(tmp_path)
    bridge = Tensors((100_000_000,), (1000,), 400_004_000)
    language = tensors_of(language_on_meta(Language(name=str(tmp_path / "flant5xxl"), precision="bf16")))
    memory, between_nodes, in_all = {}, {}, {}
    for name in ("zero2", "zero3", "zero3_hpz"):
        policy = read_policy(json.loads((ROOT / "ds_configs" / f"{name}.json").read_text()))
        sharded = language if policy.stage == 3 else None
        memory[name] = sum(sharded_language(language, policy, 16)) if sharded else language.num_bytes
        transfers = gradients_and_weights(bridge, sharded, policy, 16, 1)
        in_all[name] = sum(each.num_bytes for each in transfers)
        between_nodes[name] = sum(each.num_bytes for each in transfers if not each.within_node)
    assert memory["zero3"] < memory["zero3_hpz"] < memory["zero2"]
    assert between_nodes["zero3_hpz"] < between_nodes["zero2"] < between_nodes["zero3"]
    assert in_all["zero3"] == pytest.approx(2 * 15 / 16 * language.num_bytes, rel=0.1)  # forward and backward
