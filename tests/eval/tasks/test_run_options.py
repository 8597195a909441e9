"""The flags of eval.run: what contradicts itself ends in one line, exit 2, before anything is loaded."""

import pytest

from eval.run import main


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_length_penalty_that_is_not_finite_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--weights", "w", "--task", "vqa", "--data", "d", "--output", "o", f"--length-penalty={value}"]
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and f"argument --length-penalty: {value}" in error and error.count("\n") == 1
