"""Retrieval's rerank at 364 px with ViT-g: pictures encoded and pairs matched a second, and right scores."""

from typing import Any

import torch

from pipeline.models.inference import RetrievalModel
from pipeline.tokens import Tokens
from tests.benchmarks import rerank
from tests.gpu.checks import Checks, relative_error, seconds_of
from tests.gpu.real_towers import real_recipe, real_task

SIZE_PX, CANDIDATES, PICTURES, TEXTS_AT_ONCE = 364, 128, 32, 128
COCO_PICTURES, COCO_TEXTS = 5000, 25010
ERROR = 3e-2  # of bf16, of all logits beside fp32


def run(checks: Checks) -> None:
    size_px = 64 if checks.tiny else SIZE_PX
    pictures, candidates = (1, 8) if checks.tiny else (PICTURES, CANDIDATES)
    recipe = real_recipe("stage1_vitg", checks.output, checks.tiny, f"vision.image_size_px={size_px}")
    task: Any = real_task(recipe, checks.device)
    model = RetrievalModel(recipe, task.towers.vision, task.bridge, None)
    pixels = torch.randint(0, 256, (pictures, 3, size_px, size_px), dtype=torch.uint8)
    seconds = seconds_of(lambda: model.encode_images(pixels), checks.device, rounds=5)
    checks.figure("pictures encoded/s", pictures / seconds, least=150)
    frozen_PI = model.encode_images(pixels)[0]
    ids_KL, is_token_KL = (rows.to(checks.device) for rows in rerank.texts_of(candidates))
    ids_KL = ids_KL.clamp_max(recipe_vocabulary(task) - 1)
    texts = [
        Tokens(ids_KL[at : at + TEXTS_AT_ONCE], is_token_KL[at : at + TEXTS_AT_ONCE])
        for at in range(0, candidates, TEXTS_AT_ONCE)
    ]
    seconds = seconds_of(lambda: model.match_logits(frozen_PI, texts), checks.device)
    checks.figure("pairs matched/s", candidates / seconds, least=12000)
    coco_s = (COCO_PICTURES + COCO_TEXTS) * CANDIDATES * seconds / candidates  # each has its own candidates
    checks.figure("minutes for ITM of COCO's 5,000 pictures and 25,010 texts", coco_s / 60, most=6)
    found = model.match_logits(frozen_PI, texts).float()
    wanted = rerank.pair_by_pair(task.bridge.float(), frozen_PI.float(), ids_KL, is_token_KL, TEXTS_AT_ONCE)
    checks.at_most("logits in bf16 beside fp32, pair by pair: error", relative_error([found], [wanted]), ERROR)


def recipe_vocabulary(task: Any) -> int:
    return int(task.bridge.qformer.shape.vocabulary)
