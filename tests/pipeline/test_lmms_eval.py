"""The real lmms-eval asks our weights in two tasks of its own, `vqav2_val` and `flickr30k_test`, on local pictures.

Its answers are those of `pipeline.load`, and its scores those of `eval`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import pipeline
from eval.metrics.captions import caption_scores
from eval.metrics.vqa_accuracy import official_accuracy
from pipeline.config import Recipe, parse_recipe
from pipeline.models.build import build_bridge
from pipeline.trained_model import Model
from pipeline.weights.native import save_weights
from tests.pipeline.weights.test_convert import convert
from tests.support.random_bridges import randomise
from tests.support.tiny_towers import save_tiny_eva, tiny_recipe
from tests.support.web_folder import jpeg_bytes

ENVIRONMENT = Path(__file__).parents[2] / ".venv-lmms"
pytestmark = [
    pytest.mark.skipif(not (ENVIRONMENT / "installed").exists(), reason="lmms-eval is not installed: run make lmms"),
    pytest.mark.skipif(
        shutil.which("java") is None, reason="java is not installed: lmms-eval tokenizes captions by it"
    ),
]
PICTURES = [jpeg_bytes(seed) for seed in range(4)]
QUESTIONS = ["what colour is it ?", "is it red ?", "how many are there ?", "is it dark ?"]
AGREEING = (0, 1, 3, 10)  # so many of a question's ten answers are the model's own
ASKED = "Provide a one-sentence caption for the provided image."  # by flickr30k_test
ANSWER, CAPTION = ({"num_beams": 1, "max_new_tokens": length} for length in (16, 64))  # of both tasks
PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
ORIGINALS = {"vqav2": "vqav2/vqav2_val.yaml", "flickr": "flickr30k/flickr30k_test.yaml"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `native`, `recipe.yaml`, and the same weights as `lavis.pth` and `huggingface`."""
    root = tmp_path_factory.mktemp("weights")
    save_tiny_eva(root / "vision")
    content: dict[str, Any] = tiny_recipe(root, root / "m.json", root / "run", 2, "opt")
    recipe: Recipe = parse_recipe(content)
    (root / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    (root / "native").mkdir()
    save_weights(randomise(build_bridge(recipe), seed=3).float(), recipe, 7, root / "native")
    for name, to in (("lavis.pth", "lavis"), ("huggingface", "huggingface")):
        assert convert(root / "native", root / name, "native", to) == 0
    return root


@pytest.fixture(scope="module")
def model(exported: Path) -> Model:
    return pipeline.load(exported / "native")


def save_task(folder: Path, name: str, split: str, columns: dict[str, Any], lines: str) -> None:
    """A task of lmms-eval as it is, with another name and local data in the hub's layout."""
    table = pa.table({"image": pa.array([{"bytes": each} for each in PICTURES], PICTURE), **columns})
    layout = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    (folder / name).mkdir(parents=True)
    parquet.write_table(table.replace_schema_metadata({"huggingface": layout}), folder / name / f"{split}-0.parquet")
    [original] = ENVIRONMENT.glob(f"lib/python*/site-packages/lmms_eval/tasks/{ORIGINALS[name]}")
    (folder / f"{name}.yaml").write_text(
        f"include: {original}\ntask: tiny_{name}\ndataset_path: {folder / name}\ndataset_kwargs: {{}}\n{lines}"
    )


def run(command: list[Any], folder: Path) -> str:
    """What a command of that environment prints, without network."""
    places = {"HF_HOME": str(folder / "hf"), "PYTHONPATH": ""}
    words = list(map(str, command))
    done = subprocess.run(
        words, check=False, cwd=folder, env=os.environ | places, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "Error during evaluation" not in done.stdout, done.stdout + done.stderr
    return done.stdout


def prompt(question: str) -> str:
    return f"Question: {question} Answer:"


def test_two_of_its_tasks_have_the_texts_of_the_model_and_the_scores_of_eval(
    exported: Path, model: Model, tmp_path: Path
) -> None:
    answers = model.write(PICTURES, [prompt(each) for each in QUESTIONS], **ANSWER)
    captions = model.write(PICTURES, [prompt(ASKED)] * 4, **CAPTION)
    assert len(set(answers)) > 1 and len(set(captions)) > 1, "else their order is not seen"
    given = [[own] * count + ["another"] * (10 - count) for own, count in zip(answers, AGREEING, strict=True)]
    references = [[f"a photo of {own[: 3 * n]} {n}", f"{own} in red"] for n, own in enumerate(captions)]
    tasks = tmp_path / "tasks"
    columns: dict[str, Any] = {"question": QUESTIONS, "question_id": list(range(4)), "answer": ["another"] * 4}
    columns["answers"] = [[{"answer": answer, "answer_id": n} for n, answer in enumerate(ten)] for ten in given]
    lines = 'lmms_eval_specific_kwargs: {default: {pre_prompt: "", post_prompt: ""}}\n'
    save_task(tasks, "vqav2", "validation", columns, lines)
    columns = {"caption": references, "img_id": list(map(str, range(4))), "answer": ["a"] * 4}
    lines = "metric_list: [{metric: flickr_CIDEr, aggregation: !function utils.flickr_cider, higher_is_better: true}]\n"
    [original] = ENVIRONMENT.glob("lib/python*/site-packages/lmms_eval/tasks/flickr30k/utils.py")
    (tasks / "utils.py").symlink_to(original)
    save_task(tasks, "flickr", "test", columns, lines)

    command = [ENVIRONMENT / "bin/lmms-eval", "--model", "blip2"]
    command += ["--model_args", f"weights={exported / 'native'},prompt=answer", "--batch_size", 3]
    command += ["--tasks", "tiny_vqav2,tiny_flickr", "--include_path", tasks, "--output_path", tmp_path / "out"]
    run([*command, "--log_samples"], tmp_path)
    for name, expected in (("vqav2", answers), ("flickr", captions)):
        [log] = (tmp_path / "out").rglob(f"*_samples_tiny_{name}.jsonl")
        samples = sorted(map(json.loads, log.read_text().splitlines()), key=lambda line: line["doc_id"])
        assert [line["filtered_resps"] for line in samples] == expected
    [path] = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(path.read_text())["results"]
    accuracy = sum(official_accuracy(answer, ten) for answer, ten in zip(answers, given, strict=True)) / 4
    assert 100 * results["tiny_vqav2"]["exact_match,none"] == pytest.approx(accuracy) and accuracy > 40
    cider = float(caption_scores(captions, references).cider.mean())
    assert results["tiny_flickr"]["flickr_CIDEr,none"] == pytest.approx(cider, abs=1e-6) and cider > 0


REQUESTS = """
import contextlib, io, json, sys
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

weights, tuned, pictures = *sys.argv[1:3], [Image.open(each) for each in sys.argv[3:]]
docs = {"pictures": pictures, "none": [], "film": ["film.mp4"], "one": pictures[:1]}

def opened(arguments, **more):
    return get_model("blip2").create_from_arg_string(arguments, {"batch_size": "2", **more})

def asked(model, *requests, kind="generate_until"):
    model.task_dict = {"task": {"test": docs}}
    known = {"task": "task", "doc_id": 0, "repeats": 1}
    made = [Instance(kind, (text, how, lambda shown: shown, doc, "task", "test"), 0, known)
            for text, how, doc in requests]
    return getattr(model, kind)(made)

def fault(work):
    try:
        work()
    except ValueError as error:
        return str(error)

told, said = {}, io.StringIO()
others = f"recipe={weights}/recipe.yaml,prompt=caption"
model, greedy = opened(f"weights={weights}/native"), {"max_new_tokens": 9, "until": None}
question = ("a photo of", greedy, "one")
told["formats"] = [asked(opened(f"weights={weights}/{name},{others}"), ("?", greedy, "one"))[0]
                   for name in ("lavis.pth", "huggingface")]
told["tuned"] = asked(opened(f"weights={tuned},prompt=question {{}} short answer"), ("RED ?", {"num_beams": 5}, "one"))
told["order"] = asked(model, question, ("<image> red <image> ?", greedy, "pictures"), ("red ?", greedy, "pictures"),
                      ("a photo of", greedy | {"max_new_tokens": 3}, "one"), question)
[whole] = asked(model, question)
told["until"] = asked(model, ("a photo of", greedy | {"until": [whole[4:6]]}, "one"),
                      ("a photo of", greedy | {"until": whole[3:5]}, "one"))
told["drawn"] = asked(model, ("a photo of", greedy | {"do_sample": True, "temperature": 5.0, "seed": 3}, "one"))
with contextlib.redirect_stderr(said):
    told["plain"] = asked(model, ("a photo of", greedy | {"do_sample": False, "top_p": 1.0, "top_k": 3}, "one"))
told["said"] = said.getvalue()
told["faults"] = [
    fault(lambda: opened(f"weights={weights}/native", batch_size="auto")),
    fault(lambda: opened(f"weights={weights}/native", device="cuda:1")),
    fault(lambda: asked(model, ("red ?", greedy, "none"))),
    fault(lambda: asked(model, ("red ?", greedy, "film"))),
    fault(lambda: asked(model, ("<image> red ?", greedy, "pictures"))),
    fault(lambda: asked(model, ("red ?", greedy, "one"), kind="loglikelihood")),
    fault(lambda: asked(model, ("red ?", greedy, "one"), kind="generate_until_multi_round")),
]
print(json.dumps(told))
"""


def test_requests_of_all_kinds_get_the_models_text_or_one_line(
    exported: Path, weights: dict[str, Path], model: Model, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(2)]
    for file, content in zip(files, PICTURES, strict=False):
        file.write_bytes(content)
    out = run([ENVIRONMENT / "bin/python", "-c", REQUESTS, exported, weights["tuned"], *files], tmp_path)
    told = json.loads(out.splitlines()[-1])

    def written(text: str, *pictures: Path, length: int = 9, **how: Any) -> str:
        shown: Any = pictures if len(pictures) > 1 else pictures[0]
        return model.write([shown], [text], max_new_tokens=length, **({"num_beams": 1} | how))[0]

    plain = written("a photo of", files[0])
    assert told["formats"] == [plain] * 2 and told["plain"] == [plain]
    tuned = pipeline.load(weights["tuned"]).answer(
        files[0], "RED ?", num_beams=5, max_new_tokens=30, length_penalty=1.0
    )
    assert told["tuned"] == [tuned] and tuned
    several = [written(text, *files) for text in ("<image> red <image> ?", "<image> <image> red ?")]
    assert told["order"] == [plain, *several, written("a photo of", files[0], length=3), plain]
    assert told["until"] == [plain.partition(plain[4:6])[0].strip(), plain.partition(plain[3:5])[0].strip()]
    assert told["drawn"] == [written("a photo of", files[0], top_p=1.0, temperature=5.0, seed=3)] != [plain]
    assert told["said"] == "task: generation_kwargs top_k: have no effect on blip2\n"
    expected = ["--batch_size auto: is not a number", "--device cuda:1: the GPU is chosen", "task: sample none shows",
                "task: sample film shows str", "has 1 marks <image> for 2", "task: asks for log-likelihoods",
                "task: has several rounds"]  # fmt: skip
    for fault, words in zip(told["faults"], expected, strict=True):
        assert words in fault and "\n" not in fault
