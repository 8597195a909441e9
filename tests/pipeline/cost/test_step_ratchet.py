"""What the shipped steps of stage 1 and of FlanT5-XXL take on a GPU may fall and never rise.

The figures are counted from the operations that the real code runs, at the recipe's 105 samples a rank on 16 A100s.
To lower the bounds after an improvement: `python -m tests.pipeline.cost.test_step_ratchet` prints them as they are now;
paste its output over BOUNDS and BOUNDS_2. A bound that must rise needs a reason in the commit.
"""

import re
import tempfile
from pathlib import Path

from pipeline.config import Recipe, for_ranks, load_recipe
from pipeline.cost.estimate import Assumptions, Planner
from pipeline.cost.fusion import fused
from pipeline.cost.gpus import gpu_named
from pipeline.cost.step_time import work_of
from pipeline.cost.unweighted import longest_lengths
from pipeline.training.engine import resolve_ds_config
from tests.support.paper_sizes import save_configs

RECIPE = Path(__file__).parents[3] / "pipeline" / "recipes" / "stage1_vitg.yaml"
CAPTION_TOKENS = 13  # the mean of COCO's captions, with [CLS] and [SEP]
RANKS = 16
BOUNDS = {
    "kernels": 3995,
    "casts": 627,
    "work_ms": 438,
    "neither_product_nor_attention_ms": 127,
    "fused_kernels": 2608,
    "fused_work_ms": 390.0,
    "activations_mib": 10489,
    "memory_mib": 20853,
    "exchanged_mb": 71,
}

BOUNDS_2 = {"kernels": 6172, "work_ms": 266, "fused_work_ms": 229, "memory_mib": 33482}


def planner_of(recipe: Recipe) -> Planner:
    """On 16 A100-40GB."""
    gpu, ds_config = gpu_named("a100-40gb"), resolve_ds_config(recipe, RANKS)
    return Planner(recipe, ds_config, gpu, Assumptions(RANKS, 8, 0.4, CAPTION_TOKENS, gpu.between_nodes * 8))


def figures(folder: Path) -> dict[str, float]:
    """Kernels, casts, milliseconds and peak memory of one step of one rank."""
    save_configs(folder)
    recipe = load_recipe(RECIPE, [f"qformer.bert={folder / 'bert'}"])
    planner = planner_of(recipe)
    run = planner.unweighted.typical_run(recipe.batch.micro_size, CAPTION_TOKENS, RANKS)
    gpu = planner.gpu
    eager, merged = work_of(run.operations, gpu), work_of(fused(run.operations), gpu)
    return {
        "kernels": eager.kernels,
        "casts": eager.casts,
        "work_ms": round(eager.seconds * 1e3),
        "neither_product_nor_attention_ms": round(eager.other_s * 1e3),
        "fused_kernels": merged.kernels,
        "fused_work_ms": round(merged.seconds * 1e3, 1),
        "activations_mib": run.peak >> 20,
        "memory_mib": planner.total_bytes(recipe.batch.micro_size) >> 20,
        "exchanged_mb": round(run.sent.exchanged / 1e6),
    }


def figures_of_stage_2(folder: Path) -> dict[str, int]:
    """Milliseconds and memory of one micro batch of FlanT5-XXL at the longest texts."""
    save_configs(folder)
    edits = [f"qformer.bert={folder / 'bert'}", f"language.name={folder / 'flant5xxl'}"]
    recipe = for_ranks(load_recipe(RECIPE.with_name("stage2_vitg_flant5xxl.yaml"), edits), RANKS)
    planner = planner_of(recipe)
    gpu = planner.gpu
    run = planner.unweighted.run(recipe.batch.micro_size, longest_lengths(recipe), RANKS, lists_operations=True)
    eager, merged = work_of(run.operations, gpu), work_of(fused(run.operations), gpu)
    return {
        "kernels": eager.kernels,
        "work_ms": round(eager.seconds * 1e3),
        "fused_work_ms": round(merged.seconds * 1e3),
        "memory_mib": sum(planner.memory(run).values()) >> 20,
    }


def test_no_figure_of_a_micro_batch_of_stage_2_rises(tmp_path: Path) -> None:
    """Wanted are 230 ms and 33 GiB: 33,792 MiB."""
    found = figures_of_stage_2(tmp_path)
    assert found.keys() == BOUNDS_2.keys()
    risen = {name: f"{value}, bound {BOUNDS_2[name]}" for name, value in found.items() if value > BOUNDS_2[name]}
    assert not risen, f"{risen}; all figures: {found}"


def test_no_figure_of_a_step_rises(tmp_path: Path) -> None:
    found = figures(tmp_path)
    assert found.keys() == BOUNDS.keys()
    risen = {name: f"{value}, bound {BOUNDS[name]}" for name, value in found.items() if value > BOUNDS[name]}
    assert not risen, f"{risen}; all figures: {found}"


def test_the_page_of_normal_values_has_these_bytes() -> None:
    """Memory, and what is sent: all images of the ranks are as many times what one rank's negatives are."""
    page = " ".join((RECIPE.parents[1] / "NORMAL_VALUES.md").read_text().split())
    for row, bounds in (("stage 1, ViT-g, 105 a GPU", BOUNDS), ("stage 2, FlanT5-XXL, 5 x 19 a GPU", BOUNDS_2)):
        assert f"| {row} | {bounds['memory_mib'] / 1024:.1f} GiB |" in page
    negatives = BOUNDS["exchanged_mb"]
    assert f"{negatives} MB of negatives" in page
    [images] = re.findall(r"would send ([\d,]+) MB of all images", page)
    assert abs(int(images.replace(",", "")) - RANKS * negatives) < RANKS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        print("BOUNDS =", figures(Path(one)))
        print("BOUNDS_2 =", figures_of_stage_2(Path(other)))
