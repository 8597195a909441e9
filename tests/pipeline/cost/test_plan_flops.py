"""FLOPs counted without weights: the published figures of the paper's towers, and torch's own count of real steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.cost.dry_run import BRIDGE_BACKWARD, LANGUAGE, LANGUAGE_BACKWARD, LOGITS, VISION, UnweightedRecipe
from pipeline.cost.flops import sample_flops, utilisation_of_one_sample_a_second
from pipeline.cost.gpus import GPUS, gpu_of_cuda
from pipeline.cost.unweighted import caption_batch, longest_lengths, mean_lengths
from pipeline.training.parts import build_parts
from pipeline.training.task import StepPlace
from tests.pipeline.models.test_any_towers import LANGUAGES, VISIONS, save_vision
from tests.support.paper_sizes import save_configs
from tests.support.tiny_towers import IMAGE_SIZE_PX, tiny_recipe
from tests.support.tiny_zoo import save_language_family

RECIPES = Path(__file__).parents[3] / "pipeline" / "recipes"
GIGA = 1e9


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("configs")
    save_configs(root)
    return root


def stage1(configs: Path, vision: str, *edits: str) -> Recipe:
    return load_recipe(RECIPES / f"stage1_{vision}.yaml", [f"qformer.bert={configs / 'bert'}", *edits])


def flant5xxl(configs: Path) -> Recipe:
    towers = [f"qformer.bert={configs / 'bert'}", f"language.name={configs / 'flant5xxl'}"]
    return load_recipe(RECIPES / "stage2_vitg_flant5xxl.yaml", towers)


@pytest.mark.parametrize(
    ("vision", "size_px", "gflop"), [("vitg", 224, 521), ("vitl", 224, 155), ("vitg", 364, 1434), ("vitg", 490, 2745)]
)
def test_a_vision_tower_does_the_work_that_is_known_of_it(
    configs: Path, vision: str, size_px: int, gflop: float
) -> None:
    found = sample_flops(stage1(configs, vision, f"vision.image_size_px={size_px}"), (0, 2))
    assert found[VISION] / GIGA == pytest.approx(gflop, abs=1)


@pytest.mark.parametrize(("text_tokens", "gflop"), [(32, 80 - 13.3), (12, 80 - 13.3 - 17.9)])
def test_stage_1_does_80_gflop_less_what_sharing_and_short_captions_save(
    configs: Path, text_tokens: int, gflop: float
) -> None:
    found = sample_flops(stage1(configs, "vitg"), (0, text_tokens))
    forward = sum(flops for part, flops in found.items() if part not in (VISION, BRIDGE_BACKWARD))
    assert forward / GIGA == pytest.approx(gflop, rel=0.02)
    # Two products backward for each one forward; only the frozen image and the embeddings' inputs want no gradient.
    of_image = found["Q-Former: image keys and values"]
    assert of_image / GIGA == pytest.approx(13.3, rel=0.01)
    assert found[BRIDGE_BACKWARD] == pytest.approx(2 * forward - of_image, rel=0.01)


@pytest.mark.parametrize(("encoder", "decoder", "gflop"), [(37, 10, 514), (44, 24, 747)])
def test_flan_t5_xxl_does_the_work_that_is_known_of_it(configs: Path, encoder: int, decoder: int, gflop: float) -> None:
    found = sample_flops(flant5xxl(configs), (encoder - 32, decoder))
    forward = found[LANGUAGE] + found[LOGITS]
    assert forward / GIGA == pytest.approx(gflop, abs=1)
    assert found[LANGUAGE_BACKWARD] == pytest.approx(forward, rel=0.01)  # no gradients of frozen weights


def test_activation_checkpointing_repeats_the_layers_and_is_no_model_flop(configs: Path) -> None:
    towers = [f"qformer.bert={configs / 'bert'}", f"language.name={configs / 'opt2.7b'}"]
    plain = load_recipe(RECIPES / "stage2_vitg_opt2.7b.yaml", towers)
    repeated = load_recipe(RECIPES / "stage2_vitg_opt2.7b.yaml", [*towers, "language.activation_checkpointing=true"])
    done = {name: UnweightedRecipe(recipe).run(2, (0, 9)) for name, recipe in (("plain", plain), ("again", repeated))}
    whole = sum(done["plain"].flops.values()) / 2
    assert sum(sample_flops(repeated, (0, 9)).values()) == whole
    backward = {name: run.flops[LANGUAGE_BACKWARD] for name, run in done.items()}
    # Less than twice: a layer stops where all that is needed is there, before the last third of its products.
    assert 1.6 < backward["again"] / backward["plain"] < 2
    assert done["again"].kept[LANGUAGE] < done["plain"].kept[LANGUAGE] / 5


@pytest.mark.parametrize(("vision", "language"), list(zip(VISIONS, LANGUAGES, strict=True)), ids=str)
def test_any_towers_are_counted_as_torch_counts_a_real_step(vision: str, language: str, tmp_path: Path) -> None:
    """Of families that no code names; torch counts attention when it is made of plain products."""
    config_class, model_class, more = LANGUAGES[language]
    content: dict[str, Any] = tiny_recipe(tmp_path, tmp_path / "manifest.json", tmp_path / "run", 2, "opt")
    content["vision"] = {"name": save_vision(vision, tmp_path / "eyes"), "precision": "fp32"}
    content["vision"]["image_size_px"] = IMAGE_SIZE_PX
    content["language"] = {
        "name": save_language_family(tmp_path / "words", config_class, model_class, **more),
        "precision": "fp32",
    }
    recipe = parse_recipe(content)
    task = build_parts(recipe, "cpu")[0]
    lengths = (2, 5) if task.towers.language.kind == "seq2seq" else (0, 5)
    torch.backends.cuda.enable_flash_sdp(False)  # of CPUs, too
    batch, place = caption_batch(recipe, 2, lengths), StepPlace(0, 1.0, 5, 0)
    with FlopCounterMode(display=False) as counted:
        task(batch, place)["loss"].backward()
    # A thousandth: fused attention makes all three gradients, though a T5's first decoder layer wants only two.
    assert sum(sample_flops(recipe, lengths).values()) * 2 == pytest.approx(counted.get_total_flops(), rel=1e-3)


def test_utilisation_is_known_where_the_peak_is(configs: Path) -> None:
    recipe = stage1(configs, "vitg")
    one = utilisation_of_one_sample_a_second(recipe, 16, "NVIDIA A100-SXM4-40GB")
    assert one == pytest.approx((521 + 3 * 48.8 - 13.3) * GIGA / (16 * 312e12), rel=0.02)
    assert utilisation_of_one_sample_a_second(recipe, 16, None) is None
    assert utilisation_of_one_sample_a_second(recipe, 16, "NVIDIA GeForce RTX 3090") is None


def test_cuda_names_lead_to_one_gpu_each() -> None:
    names = ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    names += [
        "NVIDIA H20",
        "NVIDIA B200",
        "NVIDIA L40S",
        "NVIDIA A10",
        "NVIDIA GeForce RTX 4090",
        "Tesla V100-SXM2-32GB",
    ]
    found = [gpu_of_cuda(name) for name in names]
    assert found == list(GPUS)
    assert [gpu_of_cuda(name) for name in ("NVIDIA A10G", "NVIDIA L40", "NVIDIA GeForce RTX 4090D")] == [None] * 3


@pytest.mark.parametrize(
    ("language", "sample", "prompt", "mean", "longest"),
    [
        ("opt", "image", "", (0, 12), (0, 32)),
        ("opt", "caption", "a photo of", (4, 11), (4, 28)),  # BOS and three words, as the paper's code counts them
        ("t5", "caption", "a photo of", (4, 11), (4, 32)),
        ("opt", "question", "Question: {} Answer:", (13, 3), (24, 8)),
        ("t5", "question", "Question: {} Answer:", (13, 3), (32, 8)),
    ],
)
def test_a_prompt_is_planned_as_text_that_is_read_and_not_scored(
    towers: Path, language: str, sample: str, prompt: str, mean: tuple[int, int], longest: tuple[int, int]
) -> None:
    content: dict[str, Any] = tiny_recipe(towers, Path("none"), Path("none"), 2, language)
    content["data"]["sample"], content["language"]["prompt"] = sample, prompt
    content["qformer"]["question"] = "question" if sample == "question" else "none"
    recipe = parse_recipe(content)
    assert (mean_lengths(recipe, 12), longest_lengths(recipe)) == (mean, longest)
    batch = caption_batch(recipe, 2, longest)
    assert (batch.context.ids.shape[1], batch.target.ids.shape[1]) == longest
    assert (batch.question is not None) == (sample == "question")
    alone = sample_flops(recipe, mean)
    if language == "opt":  # the text's positions decide, but not the prompt's in the head
        plain = parse_recipe(content | {"data": {"manifest": "none"}, "language": content["language"] | {"prompt": ""},
                                        "qformer": content["qformer"] | {"question": "none"}})  # fmt: skip
        without = sample_flops(plain, (0, sum(mean)))
        assert alone[LANGUAGE] == pytest.approx(without[LANGUAGE], rel=1e-6)
        assert (alone[LOGITS] < without[LOGITS]) == (sample == "caption")
