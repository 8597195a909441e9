"""The audit of batching: silent on sound models, and it names padding on the wrong side when that is planted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.audit import Changed, Comparison, main, verdict
from pipeline.models.inference import LanguageModel
from pipeline.models.language import CausalTower, Decoding
from tests.eval.test_fine_tuned import weights
from tests.support.tiny_evaluation_sets import save_vqa

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions of one to six words."""
    folder = save_vqa(tmp_path_factory.mktemp("audit"), 20)
    path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    words = ["what", "colour", "is", "the", "number", "of"]
    for place, entry in enumerate(content["questions"]):
        entry["question"] = " ".join(words[: 1 + place % len(words)])
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("language", ["opt", "t5"])
def test_sound_models_answer_the_same_alone_and_together(
    language: str, checkpoints: Folders, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--weights", str(checkpoints[language]), "--data", str(questions)]) == 0
    assert "the answers are the same, one at a time and in batches of 32 (40 questions)" in capsys.readouterr().out


def test_a_qformer_that_reads_gets_its_questions(
    tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Padding among them changes the answers, and the prompt is that of fine-tuning."""
    tuned = weights(tmp_path, "audited", "question", "ask {} now", "question")
    assert main(["--weights", str(tuned), "--data", str(questions)]) == 0
    asked = set[str]()
    generate = LanguageModel.generate

    def wrong(model: Any, pixels: Any, prompts: Any, decoding: Any, questions: Any) -> list[str]:
        asked.update(prompts)
        longest = max(questions, key=len)
        return generate(model, pixels, prompts, decoding, questions=[longest] * len(prompts))

    monkeypatch.setattr(LanguageModel, "generate", wrong)
    assert main(["--weights", str(tuned), "--data", str(questions)]) == 1
    assert "answers change with the batch" in capsys.readouterr().err and "ask what colour now" in asked


def test_padding_on_the_right_is_named(
    checkpoints: Folders, questions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pads_right(self: CausalTower, prompts_BQH: object, texts: Sequence[str], decoding: Decoding) -> list[str]:
        inputs = self._inputs(prompts_BQH, self._tokenise(texts, padding_side="right"))  # type: ignore[arg-type]
        return self._generate(inputs, decoding, eos_token_id=self.end_token_id)

    monkeypatch.setattr(CausalTower, "generate", pads_right)
    assert main(["--weights", str(checkpoints["opt"]), "--data", str(questions)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: padding: ") and "must be padded on the left" in error and error.count("\n") == 1


def test_few_changes_are_last_digits_and_unpadded_ones_are_not_padding() -> None:
    padded, whole = Changed(0, "a", "x", "y", True), Changed(1, "b", "x", "y", False)
    assert "few" in verdict(Comparison([whole], 9, 20, 40), "causal")
    with pytest.raises(ValueError, match="batching: 3 of 40"):
        verdict(Comparison([padded, padded, whole], 9, 20, 40), "causal")


def test_answers_that_are_all_alike_tell_nothing_of_padding() -> None:
    with pytest.raises(ValueError, match="--samples 40: padding was not tested, because all answers are the same"):
        verdict(Comparison([], 9, 1, 40), "causal")


def test_prompts_of_one_length_tell_nothing_of_padding(
    checkpoints: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_vqa(tmp_path, 2)
    path = folder / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(path.read_text())
    for entry in content["questions"]:
        entry["question"] = "what colour"
    path.write_text(json.dumps(content))
    assert main(["--weights", str(checkpoints["opt"]), "--data", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --samples 4: padding was not tested") and error.count("\n") == 1
