"""The commands of the READMEs run letter by letter: bash splits each line, and folders have tiny files at its names.

Nothing of a line is replaced. What a line names is there under that name: pictures, tables, weights, run folders, and
the shipped recipes with tiny towers in the place of theirs. Lines that cannot run here are in `NOT_RUN`, with the
reason and the test that runs the like; their flags are parsed, and the recipes of trainings are read with their edits.
"""

import argparse
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from pipeline.config import for_ranks, load_recipe
from tests.support import readme_folders
from tests.support.documents import ROOT, SHELL, blocks_of

PAGES = ("README.md", "data_prep/README.md", "pipeline/README.md", "eval/README.md")
STARTS = ("python -m ", "deepspeed ", "torchrun ", "MLFLOW_TRACKING_URI=")
NOT_RUN = {
    "deepspeed --num_gpus 8 --module eval.run": "eight ranks: tests/eval/tasks/test_retrieval_ranks.py",
    "deepspeed": "trains for days: tests/pipeline/training/, by the launcher tests/slurm/test_training_jobs.py",
    "torchrun": "the same: tests/pipeline/distributed/test_launcher.py",
    "python -m data_prep.miniature.demo": "takes minutes: tests/test_demo.py",
    "python -m pipeline.plan": "computes for up to half a minute: tests/pipeline/cost/test_plan_command.py",
    "python -m pipeline.serve": "serves until a signal: tests/pipeline/test_serve.py",
    "python -m pipeline.fetch pipeline/recipes/stage1_vitg.yaml": "needs a network: tests/pipeline/test_fetch.py",
    "python -m pipeline.mirror": "needs the service: tests/pipeline/test_mirror.py",
    "MLFLOW_TRACKING_URI=http://host:5000": "the same",
    "python -m data_prep.index $BLIP2_DATA/captioned/*": "of SLURM's variables: tests/slurm/test_data_jobs.py",
    "python -m eval.score captions --predictions P.json --annotations dataset_coco.json": (
        "starts Java, which takes seconds: tests/eval/metrics/test_meteor.py"
    ),
    "python -m pipeline.generate --weights /new/run": "absolute paths: tests/pipeline/training/test_moved_runs.py",
    "python -m eval.run --weights /new/run": "the same",
    "python -m pipeline.generate --weights runs/stage2_vitg_opt6.7b": (
        "int4 wants layers of 64 inputs: tests/pipeline/models/test_quantised.py"
    ),
    "python -m eval.run --weights runs/stage2_vitg_opt6.7b": "int8: tests/eval/test_run.py",
    "python -m eval.submit": "wants every id of the published set: tests/eval/test_submit.py",
    "python -m eval.watch": "starts processes: tests/eval/test_watch_here.py",
    "python -m eval.select": "wants several scored checkpoints: tests/eval/test_select.py",
    "python -m eval.report --ablations": "wants runs of two recipes: tests/eval/reporting/test_ablations.py",
    "python -m eval.report runs/eval/vqa_tuned": "wants fine-tuned answers: tests/eval/reporting/test_changes.py",
    "python -m eval.audit": "random weights answer too alike to tell: tests/eval/test_audit.py",
}
"""The begin of a line -> why it is not run here."""
OF_THE_WEB = ("download laion400m", "download table laion_filtered.json")
"""Lines whose pictures come from the web: they run with --images FOLDER behind them."""
RANKS = ("--num_gpus", "--nproc_per_node", "--gpus")
RANKS_OF_HOSTS = 16  # of the page's file of hosts
SHOW = """
show() { printf '%s\\0' "$#" "$@"; }
python() { show python "$@"; }; deepspeed() { show deepspeed "$@"; }; torchrun() { show torchrun "$@"; }
"""


def lines_of(page: str) -> list[str]:
    """The page's lines that call a command of this project, as they are written, but each in one line."""
    code = [
        block.text for block in blocks_of((ROOT / page).read_text()) if block.kind == "code" and block.label in SHELL
    ]
    lines = re.sub(r"\\\n\s*", "", "\n".join(code)).splitlines()
    return [line.strip() for line in lines if line.strip().startswith(STARTS)]


def words_of(lines: list[str], folder: Path) -> list[list[str]]:
    """Each line as bash splits it: quotes, patterns of files, comments. Restricted, so that no line can do anything."""
    command = ["/bin/bash", "--restricted", "-c", SHOW + "\n".join(lines)]
    shown = subprocess.run(command, check=True, cwd=folder, env={"PATH": ""}, capture_output=True).stdout
    parts, found = iter(shown.decode().split("\0")[:-1]), []
    for count in parts:
        found.append([next(parts) for _ in range(int(count))])
    assert len(found) == len(lines)
    return found


def reason_of(line: str) -> str | None:
    return next((reason for begin, reason in NOT_RUN.items() if f"{line} ".startswith((begin, f"{begin} "))), None)


class _ParsedError(Exception):
    pass


def call(module: str, words: list[str]) -> int | None:
    """A command's main in this process."""
    with mock.patch.object(sys, "argv", [module, *words]):
        result: int | None = importlib.import_module(module).main()
    return result


def parse_alone(words: list[str]) -> None:
    """The command's own parser takes its flags. The shipped recipe is read with its edits, and its batch divided."""
    at = max(place for place, word in enumerate(words) if word in ("-m", "--module")) + 1
    real = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any) -> None:
        options = real(self, *given)
        recipe, counts = getattr(options, "recipe", None), [at for at, word in enumerate(words) if word in RANKS]
        if words[at] in ("pipeline.train", "pipeline.plan") and recipe.is_relative_to("pipeline"):
            ranks = int(words[counts[0] + 1]) if counts else RANKS_OF_HOSTS
            for_ranks(load_recipe(ROOT / recipe, options.set), ranks)
        raise _ParsedError

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), pytest.raises(_ParsedError):
        call(words[at], words[at + 1 :])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, run folders and the weights of others, all tiny."""
    folder = tmp_path_factory.mktemp("models")
    readme_folders.make_models(folder)
    names = ("stage1_vitg", "stage2_vitg_opt2.7b", "stage2_vitg_flant5xl", "finetune_caption_opt2.7b")
    for recipe in (*names, "finetune_retrieval_vitg"):
        readme_folders.make_run(folder, recipe, Path("runs", recipe))
    for source, target, kind in (
        ("stage2_vitg_opt2.7b", "blip2_pretrained_opt2.7b.pth", "lavis"),
        ("stage1_vitg", "blip2_pretrained.pth", "lavis"),
        ("finetune_retrieval_vitg", "blip2_finetune_coco.pth", "lavis"),
        ("stage2_vitg_opt2.7b", "blip2-opt-2.7b", "huggingface"),
    ):
        places = [str(folder / "runs" / source), str(folder / target)]
        assert call("pipeline.convert", [*places, "--from", "native", "--to", kind]) == 0
    shutil.copytree(folder / "blip2-opt-2.7b", folder / "Salesforce" / "blip2-opt-2.7b")
    for name in ("runs/stage2_pairs", "W"):
        shutil.copytree(folder / "runs" / "stage2_vitg_opt2.7b", folder / name)
    best = folder / "runs" / "finetune_caption_opt2.7b"
    shutil.copytree(best / readme_folders.STEP, best / "selected")
    return folder


def folder_for(page: str, models: Path, folder: Path) -> Path:
    """A folder with what the page's lines name."""
    shutil.copytree(models, folder, dirs_exist_ok=True)
    if page.startswith("data_prep"):
        readme_folders.make_raw_data(folder)
    else:
        readme_folders.make_pictures(folder)
    if page in ("README.md", "eval/README.md"):
        readme_folders.make_evaluation_data(folder)
    return folder


def make_ready(words: list[str]) -> None:
    """What stands before a line: alternatives write to one folder, and P.json are predictions of any task."""
    if "data_prep.download" in words:
        shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
    if "pipeline.convert" in words:
        shutil.rmtree(words[4], ignore_errors=True)
    if "eval.score" in words:
        files = [words[place + 1] for place, word in enumerate(words) if word == "--annotations"]
        for name in {"P.json", "OTHER.json", "scores.npz"}.intersection(words):
            PREDICTIONS[words[3]](Path(name), json.loads(Path(files[0]).read_text()) if files else None)


def _captions(path: Path, content: Any) -> None:
    test = [each for each in content["images"] if each.get("split", "test") == "test"]
    rows = [{"image_id": each.get("cocoid", each.get("id")), "caption": "a red picture"} for each in test]
    path.write_text(json.dumps(rows))


def _answers(path: Path, content: Any) -> None:
    rows = [{"question_id": each["question_id"], "answer": "red"} for each in content["annotations"]]
    path.write_text(json.dumps(rows))


def _gqa(path: Path, content: Any) -> None:
    path.write_text(json.dumps([{"questionId": each, "prediction": "red"} for each in content]))


def _retrieval(path: Path, _: Any) -> None:
    scores = np.random.default_rng(0).random((3, 6))
    np.savez(path, itc=scores, itm=scores, text_image=np.repeat(np.arange(3), 2), k_test=4)


PREDICTIONS: dict[str, Callable[[Path, Any], None]] = {
    "captions": _captions, "nocaps": _captions, "okvqa": _answers, "vqa": _answers, "gqa": _gqa,
    "retrieval": _retrieval,
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_each_line_runs_as_it_is_written(
    page: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_for(page, models, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of processes that a command starts
    lines = lines_of(page)
    assert len(lines) > 10
    split = words_of(lines, folder)
    for line, words in zip(lines, split, strict=True):
        if reason_of(line):
            parse_alone(words)
            continue
        make_ready(words)
        more = ["--images", "FOLDER"] if any(each in line for each in OF_THE_WEB) else []
        monkeypatch.setattr(sys, "stdin", io.StringIO("what is it?\n"))  # of --chat
        capsys.readouterr()
        code = call(words[2], [*words[3:], *more])
        assert code in (0, None), f"{line}\n{capsys.readouterr().err}"


def test_no_reason_outlives_its_line() -> None:
    lines = [line for page in PAGES for line in lines_of(page)]
    assert [begin for begin in NOT_RUN if not any(line.startswith(begin) for line in lines)] == []
