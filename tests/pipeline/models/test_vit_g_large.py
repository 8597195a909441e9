"""ViT-g at full size with random weights: our tower equals transformers' BLIP-2 vision model. 5 GiB of memory."""

import resource

import pytest
import torch

from pipeline.models.encoders import CLIP_MEAN, CLIP_STD, Encoder, TimmEncoder
from pipeline.models.vision import VisionTower
from pipeline.weights.huggingface import vision_state


@pytest.mark.large
def test_vit_g_equals_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    import timm
    from transformers import Blip2VisionConfig, Blip2VisionModel

    torch.manual_seed(0)
    model = timm.create_model("eva_giant_patch14_clip_224", num_classes=0)
    with torch.no_grad():
        for block in model.blocks:  # timm starts biases at zero
            block.attn.q_bias.normal_(std=0.2)
            block.attn.v_bias.normal_(std=0.2)
    tower = VisionTower(Encoder(TimmEncoder(model), CLIP_MEAN, CLIP_STD), "fp32")
    with torch.device("meta"):
        theirs = Blip2VisionModel(Blip2VisionConfig())
    norm = {"post_layernorm.weight": torch.ones(1408), "post_layernorm.bias": torch.zeros(1408)}
    theirs.load_state_dict(vision_state(tower.encoder.model, "ViT-g") | norm, assign=True)
    theirs.eval()
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    normalised = (pixels.float() - tower.get_buffer("mean")) / tower.get_buffer("std")
    with torch.no_grad():
        expected = theirs(pixel_values=normalised).last_hidden_state
    found = torch.nn.functional.layer_norm(tower(pixels), (1408,), eps=1e-6)
    assert found.shape == (2, 257, 1408)
    error = float((found - expected).norm() / expected.norm())
    with capsys.disabled():
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"\nViT-g: relative error {error:.1e}, peak memory {peak_gib:.1f} GiB")
    assert error < 1e-4
