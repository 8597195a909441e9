"""A new evaluation task is one file."""

from pathlib import Path

import pytest

import eval.catalogue as catalogue

TASK = Path(catalogue.__file__).with_name("captioning.py")


def test_a_file_in_the_folder_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TASK.read_text()
    assert text.count('name="captioning"') == 1
    (tmp_path / "my_captions.py").write_text(text.replace('name="captioning"', 'name="my_captions"'))
    monkeypatch.setattr(catalogue, "__path__", [*catalogue.__path__, str(tmp_path)])
    found = catalogue.declared()
    assert found.keys() - catalogue.TASKS.keys() == {"my_captions"} and found["my_captions"].scored_as == "captions"
