"""Tiny random checkpoints of both stages, and tiny evaluation sets, made once for all tests of this room."""

from pathlib import Path

import pytest

from tests.support.tiny_evaluation_sets import save_gqa, save_karpathy, save_lavis, save_nocaps, save_okvqa, save_vqa


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders `stage1`, `t5`, `opt`, each with one finished checkpoint of random weights."""
    import torch

    from pipeline.config import parse_recipe
    from pipeline.models.build import build_stage1, build_stage2
    from pipeline.models.language import build_language
    from pipeline.weights.native import save_weights
    from tests.support.tiny_towers import tiny_recipe

    root = tmp_path_factory.mktemp("checkpoints")
    folders = {}
    for name, stage in (("stage1", 1), ("t5", 2), ("opt", 2)):
        content = tiny_recipe(root / "towers", root / "m.json", root / name, stage, None if stage == 1 else name)
        recipe = parse_recipe(content)
        torch.manual_seed(0)
        width = 32
        if recipe.language is None:
            bridge: torch.nn.Module = build_stage1(recipe, width)
        else:
            bridge = build_stage2(recipe, width, build_language(recipe.language, "cpu"))
        step = root / name / "checkpoints" / "step_00000004"
        step.mkdir(parents=True)
        save_weights(bridge, recipe, 4, step)
        (step / "COMPLETE").touch()
        folders[name] = root / name
    return folders


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders `coco`, `lavis`, `flickr30k`, `nocaps`, `vqav2`, `okvqa` and `gqa` in the official formats."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "coco": save_karpathy(root / "coco", 9),
        "flickr30k": save_karpathy(root / "flickr30k", 9, "flickr30k"),
        "nocaps": save_nocaps(root / "nocaps", 6),
        "vqav2": save_vqa(root / "vqav2", 5),
        "lavis": save_lavis(root / "lavis", 9),
        "okvqa": save_okvqa(root / "okvqa", 5),
        "gqa": save_gqa(root / "gqa", 5),
    }
