"""What a run with LoRA has learned is used alike by every command, by transformers' merged export, and by peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, Blip2ForConditionalGeneration, Blip2Processor

import pipeline
from eval.run import main as predict
from pipeline.config import parse_recipe
from pipeline.data.transforms import load_evaluation_pixels
from pipeline.generate import main as generate
from pipeline.models.build import build_bridge
from pipeline.serving.tasks import Tasks
from pipeline.weights.native import load_model, save_weights
from tests.pipeline.weights.test_convert import convert
from tests.support.gloo_ranks import run_on_ranks
from tests.support.random_bridges import randomise
from tests.support.tiny_evaluation_sets import save_karpathy
from tests.support.tiny_runs import Write, train_and_watch
from tests.support.tiny_towers import save_tiny_eva, tiny_recipe

LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def run(folder: Path, write: Write) -> Path:
    """A finished run of stage 2 over an encoder that transformers' BLIP-2 has a place for; it learns in large steps."""
    arguments = write("used", 2, "opt", run={"steps": 6}, optimizer={"warmup_steps": 1, "peak_learning_rate": 0.03})
    edits = [f"vision.name={save_tiny_eva(folder / 'eva')}", *(f"language.lora.{k}={v}" for k, v in LORA.items())]
    [(code, errors, *_)] = run_on_ranks(1, train_and_watch, [*arguments, "--set", *edits])
    assert code == 0, errors
    return folder / "used"


def test_every_command_writes_what_the_merged_export_writes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_karpathy(tmp_path / "coco", 6)
    entries = json.loads((data / "dataset_coco.json").read_text())["images"][2:]
    files = {each["cocoid"]: data / "images" / each["filepath"] / each["filename"] for each in entries}

    assert convert(run, tmp_path / "merged", "native", "huggingface") == 0
    theirs: Any = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    theirs.vision_model.post_layernorm.eps = 1e-5  # as its conversion.json says
    processor = Blip2Processor.from_pretrained(tmp_path / "merged")
    new_row = torch.tensor([theirs.config.image_token_index])  # which else takes part in the softmax there
    theirs.language_model.lm_head.register_forward_hook(lambda *told: told[2].index_fill(-1, new_row, -1e9))
    model = pipeline.load(run)
    pixels = [load_evaluation_pixels(file, model.image_size_px) for file in files.values()]
    given = processor(images=pixels, text=["a photo of"] * len(files), padding=True, return_tensors="pt")
    ids = theirs.generate(**given, num_beams=5, max_new_tokens=30, min_new_tokens=4, do_sample=False)
    expected = processor.batch_decode(ids[:, given.input_ids.shape[1] :], skip_special_tokens=True)
    expected = [text.strip() for text in expected]

    assert model.caption(list(files.values())) == expected
    capsys.readouterr()
    assert generate(["--weights", str(run), "--image", *map(str, files.values())]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == expected
    served = [Tasks(model).caption(b"{}", file.read_bytes()) for file in files.values()]
    assert [json.loads(content)["text"] for _, content in served] == [" ".join(text.split()) for text in expected]
    evaluated = ["--weights", str(run), "--task", "captioning", "--data", str(data), "--output", str(tmp_path / "eval")]
    assert predict(evaluated) == 0
    predictions = json.loads((tmp_path / "eval" / "predictions.json").read_text())
    assert {each["image_id"]: each["caption"] for each in predictions} == dict(zip(files, expected, strict=True))

    for name, matrix in model.model.bridge.lora.named_parameters():
        matrix.data.mul_("A" in name)
    assert model.caption(list(files.values())) != expected, "else LoRA's part in the texts is not seen"


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_peft_opens_the_adapter_on_the_language_model_alone(kind: str, tmp_path: Path) -> None:
    save_tiny_eva(tmp_path / "vision")
    content: dict[str, Any] = tiny_recipe(tmp_path, tmp_path / "none.json", tmp_path / "run", 2, kind)
    content["language"]["lora"] = LORA
    recipe = parse_recipe(content)
    save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, tmp_path)
    assert convert(tmp_path, tmp_path / "merged", "native", "huggingface") == 0
    adapter = tmp_path / "merged" / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    auto: Any = {"opt": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM}[kind]
    base = auto.from_pretrained(settings["base_model_name_or_path"])
    ids = torch.tensor([[1, 5, 6, 7]])
    asked = {"input_ids": ids} | ({"decoder_input_ids": ids} if kind == "t5" else {})
    plain = base(**asked).logits
    ours: Any = load_model(tmp_path, "cpu")
    wanted = ours.language.model(**asked).logits
    theirs = PeftModel.from_pretrained(base, adapter).eval()
    torch.testing.assert_close(theirs(**asked).logits, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    notes = json.loads((tmp_path / "merged" / "conversion.json").read_text())["notes"]
    assert "the adapter of LoRA alone is in adapter/" in notes


def test_a_merged_folder_is_refused_by_each_of_its_signs_alone(tmp_path: Path) -> None:
    """Its language model would be the recipe's, without LoRA."""
    save_tiny_eva(tmp_path / "vision")
    content: dict[str, Any] = tiny_recipe(tmp_path, tmp_path / "none.json", tmp_path / "run", 2, "opt")
    plain = parse_recipe(content)
    content["language"]["lora"] = LORA
    recipe = parse_recipe(content)
    save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, tmp_path)
    assert convert(tmp_path, tmp_path / "merged", "native", "huggingface") == 0
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    without = {name: value for name, value in config.items() if name != "merged_lora_rank"}
    for sign in ("config.json", "conversion.json", "adapter", "none"):
        shutil.copytree(tmp_path / "merged", folder := tmp_path / sign)
        if sign != "config.json":
            (folder / "config.json").write_text(json.dumps(without))
        if sign != "conversion.json":
            (folder / "conversion.json").unlink()
        if sign != "adapter":
            shutil.rmtree(folder / "adapter")
        if sign == "none":
            pipeline.load(folder, plain)  # else each of the others may be refused for another reason
            continue
        with pytest.raises(ValueError, match=r"weights .*: LoRA is merged into their language model"):
            pipeline.load(folder, plain)
