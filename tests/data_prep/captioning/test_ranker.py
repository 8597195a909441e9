"""The ranker's scores are transformers' CLIP cosines, whatever the padding and the batch."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from data_prep.captioning.ranker import Ranker, load_ranker
from tests.support.tiny_captioning_models import save_tiny_clip

CAPTIONS = [["a red picture", "the colour is dark blue"], [], ["again " * 90, "a", "number 3"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("weights") / "clip")


@pytest.fixture(scope="module")
def ranker(folder: Path) -> Ranker:
    return load_ranker(folder, "cpu")


def picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (40 + seed, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def test_scores_equal_transformers_clip_padded_to_its_full_length(folder: Path, ranker: Ranker) -> None:
    found = ranker.score(torch.stack([ranker.preprocess(picture(seed)) for seed in range(3)]), CAPTIONS)
    assert [len(each) for each in found] == [2, 0, 3]
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    for number, captions in enumerate(CAPTIONS):
        if not captions:
            continue
        inputs = processor(
            text=captions,
            images=picture(number),
            padding="max_length",
            truncation=True,
            max_length=77,
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = model(**inputs).logits_per_image[0] / model.logit_scale.exp()
        torch.testing.assert_close(torch.tensor(found[number]), logits, atol=1e-5, rtol=0)


def test_a_caption_that_is_cut_keeps_its_end_token(ranker: Ranker) -> None:
    tokens = ranker.tokenizer(["again " * 200], truncation=True, max_length=ranker.max_length)["input_ids"][0]
    assert len(tokens) == 77 and tokens[-1] == ranker.model.config.text_config.eos_token_id


def test_an_image_is_scored_as_in_any_other_batch(ranker: Ranker) -> None:
    pixels = torch.stack([ranker.preprocess(picture(seed)) for seed in range(3)])
    together = ranker.score(pixels, CAPTIONS)
    for number in (0, 2):
        alone = ranker.score(pixels[number : number + 1], [CAPTIONS[number]])[0]
        torch.testing.assert_close(torch.tensor(alone), torch.tensor(together[number]), atol=1e-5, rtol=0)
    assert ranker.score(pixels[:1], [[]]) == [[]]


def test_a_spoilt_weights_folder_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "clip"
    shutil.copytree(folder, copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"--ranker {copy}: cannot be loaded"):
        load_ranker(copy, "cpu")
