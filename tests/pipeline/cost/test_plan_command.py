"""`python -m pipeline.plan`: what it says of recipes that fit and that do not, and of mistakes."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from pipeline import plan
from pipeline.config import load_recipe, parse_recipe
from pipeline.cost.estimate import Assumptions, Planner, largest_that_fits
from pipeline.cost.gpus import GIB, gpu_named, known
from pipeline.training.engine import resolve_ds_config
from tests.support.paper_sizes import save_configs
from tests.support.tiny_shards import tiny_manifest
from tests.support.tiny_towers import tiny_recipe

ROOT = Path(__file__).parents[3]
FIGURES = ("--memory-gib", "--tflops", "--bandwidth")
STAGE_2 = "stage2_vitg_flant5xxl"


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("configs")
    save_configs(root)
    return root


def plan_here(*arguments: str) -> tuple[int, str, str]:
    with (
        mock.patch.object(sys, "argv", ["pipeline.plan", *arguments]),
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        try:
            code: Any = plan.main()
        except SystemExit as end:
            code = end.code
    return code, output.getvalue(), errors.getvalue()


def without_progress(errors: str) -> str:
    return "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("computing: "))


@pytest.mark.usefixtures("without_search")
def test_a_described_gpu_is_planned_as_one_of_the_table_and_offline(tmp_path: Path) -> None:
    """A shipped recipe as it is: no folder of weights or configurations is named."""
    a100, files = gpu_named("a100-40gb"), [tmp_path / name for name in ("named.json", "described.json")]
    figures = [a100.memory_bytes / GIB, a100.peak_flops / 1e12, a100.memory_bandwidth / 1e9]
    described = [word for flag, value in zip(FIGURES, figures, strict=True) for word in (flag, str(value))]
    recipe = ["--recipe", str(ROOT / "pipeline" / "recipes" / "stage2_vitg_opt2.7b.yaml"), "--gpus", "1"]
    one = ["--set", "batch.global_size=1920"]
    found = []
    for gpu, file in zip((["--gpu", "a100-40gb"], described), files, strict=True):
        code, output, errors = plan_here(*recipe, *gpu, "--json", str(file), *one)
        assert code == 0, errors
        assert "name: facebook/opt-2.7b\n" in output
        found.append(json.loads(file.read_text()))
    named, own = found
    assert own["memory"] == named["memory"] and own["steps"] == named["steps"]
    assert own["gpu"]["name"] == "a GPU of 39.4 GiB" and own["gpu"]["within_node"] < named["gpu"]["within_node"]


def of_stage_2(configs: Path, *edits: str, gpu: str = "a100-40gb", gpus: int = 16, more: tuple[str, ...] = ()) -> Any:
    recipe = str(ROOT / "pipeline" / "recipes" / f"{STAGE_2}.yaml")
    towers = [f"qformer.bert={configs / 'bert'}", f"language.name={configs / 'flant5xxl'}"]
    return plan_here("--recipe", recipe, "--gpus", str(gpus), "--gpu", gpu, *more, "--set", *towers, *edits)


@pytest.fixture
def without_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that do not look for the largest micro batch, most of their time."""
    monkeypatch.setattr(Planner, "largest_micro", lambda _: 0)


@pytest.mark.usefixtures("without_search")
def test_the_papers_second_stage_fits_its_gpus(configs: Path, tmp_path: Path) -> None:
    """With the warning of a manifest whose pictures are stored smaller."""
    file, manifest = tmp_path / "plan.json", tiny_manifest(tmp_path, 4)
    code, output, errors = of_stage_2(configs, f"data.manifest={manifest}", more=("--json", str(file)))
    assert code == 0, errors
    assert "computing: a micro batch of 19, longest captions\n" in errors
    warning = without_progress(errors)
    assert warning.startswith("warning: vision.image_size_px 224: 4 of 4 pictures are stored with ")
    assert warning.count("\n") == 1
    numbers = json.loads(file.read_text())
    assert output.startswith("stage: 2") and output.rstrip().endswith(str(file))
    assert numbers["fits"] and numbers["total_bytes"] == sum(numbers["memory"].values())
    for guess in (
        "the host waits for the GPU in DeepSpeed's timer alone",
        "the network takes no time behind the next batch's pass",
    ):
        assert f"assumed: {guess}" in output
    assert "40% of the peak 312 TFLOP/s" in output and "in less than 3 days on 16 A100s: 15% or more" in output
    days = numbers["seconds"]["arithmetic"] * 80_000 / 86_400
    assert 0.4 * days / 3 == pytest.approx(0.15, abs=0.005)  # what "less than 3 days" takes at the least


@pytest.mark.parametrize("room", [1.02, 1.1])
def test_the_largest_micro_batch_fits_and_one_more_does_not(towers: Path, room: float) -> None:
    """On a GPU with `room` times the memory that two pairs take."""
    content = tiny_recipe(towers, towers / "none.json", towers / "run", 1)
    recipe = parse_recipe(content | {"batch": {"global_size": 64, "micro_size": 32}})
    assumed, ds_config = Assumptions(2, 8, 0.4, 12, 200e9), resolve_ds_config(recipe, 2)
    least = Planner(recipe, ds_config, gpu_named("a100-40gb"), assumed).total_bytes(2)
    gpu = replace(gpu_named("a100-40gb"), memory_bytes=int(least * room))
    planner = Planner(recipe, ds_config, gpu, assumed)
    largest = planner.largest_micro()
    assert planner.total_bytes(largest) <= gpu.memory_bytes < planner.total_bytes(largest + 1)
    none = Planner(recipe, ds_config, replace(gpu, memory_bytes=least - 1), assumed)
    assert none.largest_micro() == 0


@pytest.mark.parametrize("power", [1.0, 2.0, 1.2, 4.0])
@pytest.mark.parametrize("largest", [1, 2, 3, 26, 206, 4_321])
def test_the_search_ends_soon_however_memory_grows(power: float, largest: int) -> None:
    asked: list[int] = []

    def bytes_of(size: int) -> int:
        asked.append(size)
        return 10_000 + int(1000 * size**power)

    assert largest_that_fits(bytes_of, 1, 2, bytes_of(largest)) == largest
    assert len(asked) <= 24 and max(asked) <= max(16, 16 * largest)


def test_fp32_is_timed_by_its_own_peak(towers: Path) -> None:
    recipe = parse_recipe(
        tiny_recipe(towers, towers / "none.json", towers / "run", 1) | {"batch": {"global_size": 8, "micro_size": 4}}
    )
    seconds = []
    for precision in ("fp32", "bf16"):
        section = recipe.qformer.model_copy(update={"precision": precision})
        planner = Planner(
            recipe.model_copy(update={"qformer": section}),
            resolve_ds_config(recipe, 2),
            gpu_named("a100-40gb"),
            Assumptions(2, 8, 0.4, 12, 200e9),
        )
        seconds.append(planner.seconds({"Q-Former: queries (ITC)": 1e9}, [])["arithmetic"])
    assert seconds[0] / seconds[1] == pytest.approx(312 / 19.5)


@pytest.mark.usefixtures("without_search")
def test_utilisation_does_not_count_what_is_computed_twice(towers: Path) -> None:
    content: dict[str, Any] = tiny_recipe(towers, towers / "none.json", towers / "run", 1)
    content |= {"batch": {"global_size": 8, "micro_size": 4}}
    plans = []
    for again in (False, True):
        content["vision"] |= {"trained": True, "activation_checkpointing": again}
        recipe = parse_recipe(content)
        assumed, ds_config = Assumptions(2, 8, 0.4, 12, 200e9), resolve_ds_config(recipe, 2)
        plans.append(Planner(recipe, ds_config, gpu_named("a100-40gb"), assumed).plan())
    once, twice = plans
    assert once.model_flops == twice.model_flops == sum(once.flops.values()) < sum(twice.flops.values())
    step = twice.steps["eager"]
    assert step.utilisation == pytest.approx(4 * once.model_flops / (step.step_s * 312e12))


@pytest.mark.usefixtures("without_search")
def test_what_does_not_fit_is_said_in_one_line_and_its_advice_makes_it_fit(configs: Path) -> None:
    larger = "batch.micro_size=95"
    code, output, errors = of_stage_2(configs, larger)
    errors = without_progress(errors)
    assert code == 1 and "DOES NOT FIT" in output
    assert errors.count("\n") == 1 and errors.startswith("error: does not fit a100-40gb: ")
    advice = "language.activation_checkpointing=true"
    assert "the largest part is activations, language model (" in errors and advice in errors
    towers = [f"qformer.bert={configs / 'bert'}", f"language.name={configs / 'flant5xxl'}"]
    recipe = load_recipe(ROOT / "pipeline" / "recipes" / f"{STAGE_2}.yaml", [*towers, larger, advice])
    gpu, assumed = gpu_named("a100-40gb"), Assumptions(16, 8, 0.4, 12, 200e9)
    assert Planner(recipe, resolve_ds_config(recipe, 16), gpu, assumed).total_bytes(95) <= gpu.memory_bytes


@pytest.mark.parametrize(
    ("largest", "edits", "largest_micro", "advice"),
    [
        ("language model", [], 0, "set run.layout=sharded with run.zero=ds_configs/zero3.json, or a smaller language"),
        ("language model, this rank's part", ["run.layout=sharded"], 0, "use more GPUs, or set a smaller language"),
        ("bridge, gradients", [], 12, "run.zero=ds_configs/zero2_offload.json, or batch.micro_size to at most 12"),
        ("activations, bridge", [], 12, "lower batch.micro_size (up to 12 fit)"),
        ("activations, language model", ["language.activation_checkpointing=true"], 0, "lower batch.micro_size"),
    ],
)
def test_each_largest_part_has_its_advice(largest: str, edits: list[str], largest_micro: int, advice: str) -> None:
    edits = [*edits, *(["run.zero=ds_configs/zero3.json"] if "run.layout=sharded" in edits else [])]
    recipe, gpu = load_recipe(ROOT / "pipeline" / "recipes" / f"{STAGE_2}.yaml", edits), gpu_named("a100-40gb")
    memory = {largest: gpu.memory_bytes, "logits": 1}
    planned: Any = SimpleNamespace(memory=memory, total_bytes=gpu.memory_bytes + 1, largest_micro=largest_micro)
    with pytest.raises(ValueError, match=r"does not fit a100-40gb: 39\.4 of 39\.4 GiB; the largest part is ") as error:
        plan.check_fits(planned, recipe, gpu)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--gpu", "tpu-v4", "--gpus", "16"], 2,
         f"--gpu tpu-v4: is not in the table of pipeline/cost/gpus.py; there are {', '.join(known())}; for another, "),
        (["--gpus", "16"], 2, "--gpu: is missing; name a GPU, or give --memory-gib, --tflops and --bandwidth"),
        (["--memory-gib", "24", "--tflops", "100", "--gpus", "16"], 2, "--gpu: is missing"),
        (["--gpu", "a10", "--tflops", "100", "--gpus", "16"], 2, "--gpu a10: has figures of its own; remove it, or"),
        (["--memory-gib", "nan", "--gpus", "16"], 2, "argument --memory-gib: 'nan' is not a number above 0"),
        (["--gpu", "v100", "--gpus", "16"], 1, "qformer.precision 'bf16': a v100 has no bf16; set"),
        (["--gpu", "a100-40gb", "--gpus", "0"], 2, "argument --gpus: '0' is not a whole number above 0"),
        (["--gpu", "a100-40gb", "--gpus", "16", "--utilisation", "1.5"], 2, "--utilisation 1.5"),
        (["--gpu", "a100-40gb", "--gpus", "16", "--caption-tokens", "99"], 1, "--caption-tokens 99: captions are cut"),
        (["--gpu", "a100-40gb", "--gpus", "16", "--json", "."], 1, ".: is not a regular file"),
        (["--gpu", "a100-40gb", "--gpus", "7"], 1, "batch: global_size 1680 is not micro_size 105 x accumulation"),
        (["--gpu", "a100-40gb", "--gpus", "16", "--set", "qformer.bert=nowhere"], 1, "qformer.bert 'nowhere': "),
        (["--gpu", "a100-40gb", "--gpus", "16", "--set", "vision.name=vit_nothing"], 1, "vision.name 'vit_nothing'"),
        (["--gpu", "a100-40gb", "--gpus", "16", "--set", "run.zero=none.json"], 1, "run.zero 'none.json': no such"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: list[str], code: int, said: str) -> None:
    recipe = str(ROOT / "pipeline" / "recipes" / "stage1_vitg.yaml")
    found, _, errors = plan_here("--recipe", recipe, *arguments)
    errors = without_progress(errors)
    assert found == code and errors.count("\n") == 1
    assert said in errors


def test_a_length_in_epochs_needs_the_manifest_or_its_number_of_samples() -> None:
    edits = ["run.steps=0", "run.epochs=5", "batch.global_size=256", "data.manifest=not/there.json"]
    recipe = load_recipe(ROOT / "pipeline" / "recipes" / f"{STAGE_2}.yaml", edits)
    two_seconds: Any = SimpleNamespace(days=lambda steps: steps * 2 / 86_400)
    told = [plan._length_line(two_seconds, plan._in_steps(recipe, samples)) for samples in (None, 566_747)]
    assert told[0].startswith("5 epochs: so many steps need data.manifest") and "--epoch-samples" in told[0]
    assert told[1] == "11065 steps (5 epochs of 2213): 6.1 hours"
    with pytest.raises(ValueError, match=r"batch\.global_size 256: --epoch-samples has only 200 samples"):
        plan._in_steps(recipe, 200)
