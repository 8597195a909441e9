"""The fast captioner computes transformers' BLIP, samples by transformers' rules, and repeats itself exactly."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from data_prep.captioning import nucleus
from data_prep.captioning.blip_decoder import FoldedDecoder
from data_prep.captioning.captioner import Captioner, SamplingSettings, load_captioner
from data_prep.captioning.nucleus import draw_table, draw_token, penalise_repetition
from tests.support.tiny_captioning_models import save_tiny_blip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_blip(tmp_path_factory.mktemp("weights") / "blip")


@pytest.fixture(scope="module")
def model(folder: Path) -> BlipForConditionalGeneration:
    return BlipForConditionalGeneration.from_pretrained(folder).eval()


def random_pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def captions_in_batches(captioner: Captioner, num_images: int, batch_size: int) -> list[list[str]]:
    pixels, keys = random_pixels(num_images), [f"web_{number}" for number in range(num_images)]
    batches = range(0, num_images, batch_size)
    return [
        captions
        for start in batches
        for captions in captioner.caption(keys[start : start + batch_size], pixels[start : start + batch_size])
    ]


def test_logits_equal_transformers_own_on_every_prefix(model: BlipForConditionalGeneration) -> None:
    num_images, num_samples, prompt_length, length = 3, 4, 3, 9
    pixels = random_pixels(num_images)
    prompt = torch.randint(5, 40, (1, prompt_length), generator=torch.Generator().manual_seed(1)).expand(num_images, -1)
    drawn = torch.randint(5, 40, (num_images * num_samples, length), generator=torch.Generator().manual_seed(2))
    tokens = torch.cat([prompt.repeat_interleave(num_samples, 0), drawn], 1)
    with torch.inference_mode():
        expected = model(pixels.repeat_interleave(num_samples, 0), input_ids=tokens).logits
        decoder = FoldedDecoder(model.text_decoder)
        state = decoder.start(model.vision_model(pixels).last_hidden_state, tokens.shape[1])
        found = [decoder.logits(decoder.advance(state, prompt)).repeat_interleave(num_samples, 0)]
        decoder.widen(state, num_samples)
        found += [decoder.logits(decoder.advance(state, drawn[:, step : step + 1])) for step in range(length)]
    torch.testing.assert_close(torch.stack(found, 1), expected[:, prompt_length - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("vocabulary_size", [50, 3000])
def test_drawn_tokens_follow_the_distribution_that_transformers_would_sample_from(vocabulary_size: int) -> None:
    logits = torch.randn(6, vocabulary_size, generator=torch.Generator().manual_seed(0))
    logits[:3] *= 4  # peaked rows, whose nucleus is small, beside flat ones
    logits[5, 7] = 40.0
    expected = TopPLogitsWarper(0.9)(None, logits.clone()).softmax(-1)  # type: ignore[arg-type]
    num_draws = 4000
    uniform = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    for row in range(6):
        drawn = draw_token(logits[row].expand(num_draws, -1), 0.9, uniform)
        found = torch.bincount(drawn, minlength=vocabulary_size) / num_draws
        torch.testing.assert_close(found, expected[row], atol=2 / num_draws, rtol=0)


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    logits = torch.randn(8, 2000, generator=torch.Generator().manual_seed(0)) * torch.arange(8)[:, None]
    uniform = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = draw_token(logits, 0.9, uniform)
    alone = torch.cat([draw_token(logits[row : row + 1], 0.9, uniform[row : row + 1]) for row in range(8)])
    assert torch.equal(together, alone)


def test_the_repetition_penalty_is_transformers_own() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(4, 20, generator=generator), torch.randint(0, 20, (4, 7), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(1.1)(tokens, logits.clone())
    torch.testing.assert_close(penalise_repetition(logits, tokens, 1.1), expected, atol=0, rtol=0)


def test_a_greedy_caption_is_that_of_transformers_generate(folder: Path, model: BlipForConditionalGeneration) -> None:
    """With a nucleus so small that it holds one token, sampling is greedy search, and the two can be compared."""
    settings = SamplingSettings(top_p=1e-6, num_captions=2, min_length=9, max_length=16)
    captioner, pixels = load_captioner(folder, settings, "cpu"), random_pixels(3)
    processors = [RepetitionPenaltyLogitsProcessor(1.1), MinLengthLogitsProcessor(9, captioner.end)]
    prompt = torch.tensor([[*captioner.prompt, captioner.end]])  # generate drops the last token
    for number in range(3):
        tokens = model.generate(
            pixels[number : number + 1],
            input_ids=prompt.clone(),
            do_sample=False,
            max_length=16,
            logits_processor=processors,
        )
        expected = captioner._text(tokens[0].tolist())
        assert captioner.caption(["key"], pixels[number : number + 1]) == [[expected, expected]]


def rows_multiply_alike() -> bool:
    """Whether this processor computes a row of 80 as it computes it among 320 (not all do)."""
    rows, weight = torch.randn(320, 32), torch.randn(64, 32)
    return torch.equal(torch.nn.functional.linear(rows[:80], weight), torch.nn.functional.linear(rows, weight)[:80])


@pytest.mark.parametrize("threads", [1, 2])
def test_captions_do_not_depend_on_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """Not even the last bits of the logits do: a draw would turn on them once in a million times."""
    before, seen = torch.get_num_threads(), []

    def draw_and_record(logits: torch.Tensor, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
        seen.append(logits[:10].clone())
        return draw_token(logits, top_p, uniform)

    monkeypatch.setattr(nucleus, "draw_token", draw_and_record)
    torch.set_num_threads(threads)
    try:
        captioner = load_captioner(folder, SamplingSettings(max_length=10, min_length=10), "cpu")
        expected, logits = captions_in_batches(captioner, 10, 10), torch.stack(seen)
        for batch_size in (1, 3, 8):
            seen.clear()
            assert captions_in_batches(captioner, 10, batch_size) == expected
            assert torch.equal(torch.stack(seen[: len(logits)]), logits) or not rows_multiply_alike()
    finally:
        torch.set_num_threads(before)


def test_captions_depend_on_seed_key_and_number_and_on_nothing_else(folder: Path) -> None:
    captioner, pixels = load_captioner(folder, SamplingSettings(), "cpu"), random_pixels(1)
    once = captioner.caption(["a"], pixels)
    torch.manual_seed(7)
    assert captioner.caption(["a"], pixels) == once
    assert captioner.caption(["b"], pixels) != once
    assert load_captioner(folder, SamplingSettings(seed=1), "cpu").caption(["a"], pixels) != once
    assert len(set(once[0])) > 1
    fewer = load_captioner(folder, SamplingSettings(num_captions=4), "cpu").caption(["a"], pixels)
    assert fewer[0] == once[0][:4]


def test_draws_differ_between_samples_and_repeat() -> None:
    table = draw_table(0, ["a", "b"], 3, 5)
    assert table.shape == (6, 5) and table.dtype == torch.float64 and len(set(table.flatten().tolist())) == 30
    assert torch.equal(draw_table(0, ["b"], 3, 4), table[3:, :4])


def test_lengths_count_start_token_and_prompt(folder: Path) -> None:
    captioner = load_captioner(folder, SamplingSettings(min_length=8, max_length=16), "cpu")
    assert len(captioner.prompt) == 4
    tokens = captioner._sample([f"web_{number}" for number in range(16)], random_pixels(16))
    assert tokens.shape[1] <= 16
    ends = [row.index(captioner.end) for row in tokens.tolist() if captioner.end in row]
    assert ends and min(ends) >= 8


def test_pictures_are_preprocessed_by_the_folders_own_processor(folder: Path) -> None:
    captioner = load_captioner(folder, SamplingSettings(), "cpu")
    pixels = captioner.preprocess(Image.new("RGB", (50, 40), "white"))
    mean, std = (
        torch.tensor(each) for each in (captioner.image_processor.image_mean, captioner.image_processor.image_std)
    )
    torch.testing.assert_close(pixels, ((1 - mean) / std)[:, None, None].expand(3, 32, 32))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (shutil.rmtree, "is not a folder of weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "'bert'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "cannot be loaded"),
        (lambda folder: (folder / "processor_config.json").unlink(), "cannot be loaded"),
    ],
)
def test_a_spoilt_weights_folder_is_named(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(ValueError, match=f"--captioner {copy}.*{reason}"):
        load_captioner(copy, SamplingSettings(), "cpu")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"top_p": 0.0}, "--top-p 0.0"),
        ({"num_captions": 0}, "--num-captions 0"),
        ({"min_length": 21}, "--min-length 21"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"max_length": 4, "min_length": 1}, "--max-length 4"),
        ({"max_length": 99}, "--max-length 99"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, settings: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        load_captioner(folder, SamplingSettings(**settings), "cpu")  # type: ignore[arg-type]
