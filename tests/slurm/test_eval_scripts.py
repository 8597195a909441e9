"""What evaluation's watch list and scripts refuse, and what score.sbatch asks for; without a cluster."""

import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"runs": ["a"], "evaluations": {}}, "output: Field required"),
        ({"output": "o", "runs": ["a/x", "b/x"], "evaluations": {"v": {"task": "vqa", "data": "d"}}}, "called 'x'"),
        ({"output": "o", "runs": ["a"], "evaluations": {"v": {"task": "vaq", "data": "d"}}}, "evaluations.v.task"),
        (
            {"output": "o", "runs": ["a"], "evaluations": {"task": {"taks": "vqa", "data": "d"}}},
            "(evaluations.task.taks: unknown field (did you mean task?))",
        ),
        ({"outptu": "o", "runs": ["a"], "evaluations": {}}, "(outptu: unknown field (did you mean output?))"),
        (
            {"output": "o", "runs": ["a"], "evaluations": {"v": {"task": "vqa", "data": "d", "runs": ["b"]}}},
            "'b' is none",
        ),
        ({"output": "o", "runs": ["a"], "evaluations": {"a/b": {"task": "vqa", "data": "d"}}}, "evaluations: 'a/b'"),
        ({"output": "o", "runs": ["a"], "evaluations": {"a b": {"task": "vqa", "data": "d"}}}, "evaluations: 'a b'"),
        ({"output": "o", "runs": ["a"], "evaluations": {"a,b": {"task": "vqa", "data": "d"}}}, "evaluations: 'a,b'"),
        ({"output": "o", "runs": ["a"], "evaluations": {"..": {"task": "vqa", "data": "d"}}}, "evaluations: '..'"),
        ({"output": "o", "runs": ["x/a b"], "evaluations": {"v": {"task": "vqa", "data": "d"}}}, "runs: 'a b'"),
        ({"output": "o", "runs": ["."], "evaluations": {"v": {"task": "vqa", "data": "d"}}}, "runs: ''"),
    ],
)
def test_a_wrong_list_is_one_line_that_names_the_field(
    content: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.watch import main

    (tmp_path / "list.yaml").write_text(yaml.safe_dump(content))
    assert main([str(tmp_path / "list.yaml"), "--once"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("score.sbatch", {}, "runs under SLURM only"),
        ("score.sbatch", {"SLURM_JOB_ID": "1"}, "BLIP2_HOME: is not set"),
        ("score.sbatch", {"SLURM_JOB_ID": "1", "BLIP2_HOME": "/nowhere"}, "BLIP2_HOME /nowhere"),
        ("score.sbatch", {"SLURM_JOB_ID": "1", "BLIP2_HOME": str(ROOT)}, "TASK: is missing"),
        ("eval_watch", {}, "BLIP2_HOME: is not set"),
        ("eval_watch", {"BLIP2_HOME": str(ROOT), "MASTER_PORT": "1"}, "LIST: is missing"),
    ],
)
def test_a_script_says_in_one_line_what_it_lacks(script: str, variables: dict[str, str], message: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", **variables}
    command = ["bash", f"slurm/{script}"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "scored_with", "reported_with"),
    [
        (
            ["--split", "a b", "--", "--training-hashes", "c d", "e"],
            ["--split", "a b"],
            ["--training-hashes", "c d", "e"],
        ),
        (["--split", "test"], ["--split", "test"], []),
        (["--", "--seed", "1"], [], ["--seed", "1"]),
        (["--"], [], []),
    ],
)
def test_flags_after_two_dashes_are_the_reports(
    flags: list[str], scored_with: list[str], reported_with: list[str], tmp_path: Path
) -> None:
    done, asked = run_score(tmp_path, flags, ":")
    assert done.returncode == 0, done
    assert asked["eval.score"][7:] == scored_with and asked["eval.report"][5:] == reported_with
    assert asked["eval.curves"] == [str(tmp_path / "run")]


def test_a_score_job_whose_curves_have_a_fault_still_reports_and_then_fails(tmp_path: Path) -> None:
    done, asked = run_score(tmp_path, [], '[ "$2" != eval.curves ]')
    assert done.returncode == 1 and "eval.report" in asked


def run_score(
    folder: Path, flags: list[str], then: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, list[str]]]:
    """score.sbatch with a python that writes what each module is asked, then runs a line of shell."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    evaluated = folder / "run" / "step_2" / "coco"
    evaluated.mkdir(parents=True)
    (folder / "slurm").symlink_to(ROOT / "slurm")
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >"{folder}/$2"\n{then}\n')
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "1", "BLIP2_HOME": str(folder)}
    command = ["bash", "slurm/score.sbatch", "captions", str(evaluated), *flags]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done, {path.name: path.read_text().splitlines()[2:] for path in folder.glob("eval.*")}


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_example_of_a_clusters_values_works_under_cron(shell: str) -> None:
    name = pwd.getpwuid(os.getuid()).pw_name
    known = ["HOME=/home/me", f"LOGNAME={name}", f"SHELL=/bin/{shell}", "PATH=/usr/bin:/bin"]  # and no USER
    script = '. slurm/cluster.env.example && echo "$BLIP2_HOME $BLIP2_DATA $HF_HOME"'
    done = subprocess.run(
        ["env", "-i", *known, shell, "-c", script], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == f"/home/me/blip2 /scratch/{name}/blip2 /scratch/{name}/huggingface\n"
