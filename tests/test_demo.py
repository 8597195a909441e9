"""`make demo` at a fiftieth of its size: every step through its real command, killed once on the way."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.miniature.ablations import VARIANTS
from data_prep.miniature.story import TRAINED
from tests.support.gloo_ranks import free_port

DEADLINE_S = 1200.0
PROMPT = "a photo of"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, float], str]:
    """A demo that was killed once in the middle of stage 1 and then run to its end, with its step times at the kill."""
    folder = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable,
        "-m",
        "data_prep.miniature.demo",
        "--output",
        str(folder),
        "--scale",
        "0.02",
    ]
    command += ["--port", str(free_port(1 + len(TRAINED)))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoints, end = folder / "stage1" / "checkpoints", time.monotonic() + DEADLINE_S
    while not list(checkpoints.glob("*/COMPLETE")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)
    first.kill()
    first.wait()
    done = {path.name: path.stat().st_mtime for path in (folder / "steps").glob("*.json")}
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    return folder, done, second.stdout


def test_nothing_that_was_complete_is_done_twice(finished):
    folder, done, output = finished
    assert "index.json" in done and "train-stage1.json" not in done
    assert {name: (folder / "steps" / name).stat().st_mtime for name in done} == done
    assert output.count("already done") == len(done)


def test_the_summary_holds_every_number(finished):
    folder, _, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {
        "retrieval", "vqa", "captions", "fine_tuned", "capfilt", "download", "seconds", "peak_rss_mb", "seed",
    }  # fmt: skip
    retrieval = {"tr_at_1", "ir_at_1", "tr_at_1_itc_only", "ir_at_1_itc_only", "chance_at_1", "gallery"}
    assert set(summary["retrieval"]) == retrieval
    assert set(summary["vqa"]) == {"t5", "opt"} and set(summary["vqa"]["t5"]) == {"accuracy", "blind"}
    assert set(summary["captions"]["nocaps"]) == {"in", "near", "out", "overall"}
    download = summary["download"]
    assert download["rows"] == download["kept"] + sum(download["dropped_by_reason"].values())
    assert 0 < summary["capfilt"]["true_before"] < 100


def test_the_report_is_one_file_without_outside_requests(finished):
    folder, _, _ = finished
    page = (folder / "report.html").read_text()
    for outside in ('src="http', "src='http", 'href="http', "url(http", "@import", "<link"):
        assert outside not in page
    assert "data:image/" in page and "<svg" in page


def test_its_models_open_in_transformers(finished, tmp_path):
    import torch
    from PIL import Image
    from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2Processor

    import pipeline
    from pipeline.convert import main as convert

    folder, _, _ = finished
    for name in ("stage1", "stage2_t5"):
        command = [str(folder / name), str(tmp_path / name), "--from", "native", "--to", "huggingface"]
        assert convert(command) == 0
    paths = sorted((folder / "world" / "flickr30k").rglob("*.jpg"))[:8]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    with torch.no_grad():
        read = Blip2Processor.from_pretrained(tmp_path / "stage2_t5")
        theirs = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "stage2_t5").eval()
        given = read(pictures, [PROMPT] * len(pictures), return_tensors="pt")
        assert len(read.batch_decode(theirs.generate(**given, max_new_tokens=5))) == len(pictures)
        theirs.vision_model.post_layernorm.eps = 1e-5  # ours, as convert says
        tokens = theirs.vision_model(given.pixel_values).last_hidden_state
        queries = theirs.query_tokens.expand(len(pictures), -1, -1)
        seen = theirs.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        model = pipeline.load(folder / "stage2_t5")
        prompts = model.model._soft_prompts(model._pixels(paths), None, None).float()
        assert torch.cosine_similarity(theirs.language_projection(seen), prompts, dim=-1).min() > 0.9999
        texts = ["a red circle", "a blue square on a grey background"]
        read = Blip2Processor.from_pretrained(tmp_path / "stage1")
        theirs = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "stage1").eval()
        theirs.vision_model.post_layernorm.eps = 1e-5  # ours, as convert says
        given = read(pictures[:1], return_tensors="pt") | read.tokenizer(texts, padding=True, return_tensors="pt")
        found = theirs(**given, use_image_text_matching_head=False).logits_per_image[0]
        wanted = pipeline.load(folder / "stage1").match(paths[0], texts).itc
    assert torch.allclose(found, torch.as_tensor(wanted).flatten(), atol=1e-5)


def test_the_ablations_run_on_it_as_their_page_writes_them(finished, tmp_path):
    """Figure 5 and Table 6, each with its curves or numbers; and nothing is written into the demo."""
    folder, _, _ = finished
    before = sorted((path, path.stat().st_mtime) for path in folder.rglob("*"))
    text = Path("data_prep/miniature/README.md").read_text()
    [line] = re.findall(r"^python -m (data_prep\.miniature\.ablations --demo .*)$", text, re.MULTILINE)
    places = {"runs/small": str(folder), "runs/small_ablations": str(tmp_path)}
    command = [sys.executable, "-m", *(places.get(word, word) for word in line.split())]
    command += ["--port", str(free_port(1 + len(VARIANTS)))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert all(part in done.stdout for part in ("Figure 5, training", "Table 6, training", "this call took"))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<polyline") == 4, "two language models, with and without stage 1"
    assert "Zero-shot VQA accuracy, opt" in page and "Zero-shot VQA accuracy, t5" in page
    assert "ITC + ITM" in page and "84.5" in page and "85.4" in page and "one seed" in page
    assert sorted((path, path.stat().st_mtime) for path in folder.rglob("*")) == before
