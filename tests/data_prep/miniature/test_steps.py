"""The demo's runner: each command once, side by side where it may be, and nothing left behind by a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from data_prep.miniature import ablations
from data_prep.miniature.demo import Story
from data_prep.miniature.processes import LESS_URGENT, MARK
from data_prep.miniature.schedule import SHORT_S, USUAL_S, Step, seconds_left, time_to_end, usual_s
from data_prep.miniature.steps import Runner, StepFailed
from data_prep.miniature.story import STEPS

DEADLINE_S = 30.0


def writes(name: str, folder: Path, *needs: str, text: str = "x") -> Step:
    """A step that appends to its output, so that running it twice shows."""
    output = folder / f"{name}.txt"
    return Step(name, (sys.executable, "-c", f"open({str(output)!r}, 'a').write({text!r})"), output, needs)


def run(folder: Path, *steps: Step, at_once: int = 2) -> None:
    Runner(folder, steps, at_once).run()


def wait_for(path: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def marked(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(folder.resolve())):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_second_run_repeats_nothing(tmp_path):
    steps = [writes("first", tmp_path), writes("beside", tmp_path), writes("last", tmp_path, "first", "beside")]
    run(tmp_path / "demo", *steps)
    run(tmp_path / "demo", *steps)
    assert [(tmp_path / f"{name}.txt").read_text() for name in ("first", "beside", "last")] == ["x", "x", "x"]
    stamps = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "demo" / "steps").iterdir()}
    assert set(stamps) == {"first", "beside", "last"} and all(stamp["seconds"] >= 0 for stamp in stamps.values())


def test_a_step_runs_again_with_all_that_need_it_when_its_command_changes(tmp_path):
    rest = [writes("last", tmp_path, "first"), writes("other", tmp_path)]
    run(tmp_path / "demo", writes("first", tmp_path), *rest)
    run(tmp_path / "demo", writes("first", tmp_path, text="y"), *rest)
    assert [(tmp_path / f"{name}.txt").read_text() for name in ("first", "last", "other")] == ["xy", "xx", "x"]


def test_a_step_whose_output_was_removed_runs_again(tmp_path):
    run(tmp_path / "demo", writes("first", tmp_path))
    (tmp_path / "first.txt").unlink()
    run(tmp_path / "demo", writes("first", tmp_path))
    assert (tmp_path / "first.txt").read_text() == "x"


def meets(name: str, folder: Path, other: str) -> Step:
    """A step that ends only when the other one has started too."""
    program = "import os, sys, time\nopen(sys.argv[1], 'w')\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.02)\n"
    command = (sys.executable, "-c", program, str(folder / name), str(folder / other))
    return Step(name, command, folder / name)


def test_steps_that_do_not_need_each_other_run_side_by_side(tmp_path):
    run(tmp_path / "demo", meets("one", tmp_path, "two"), meets("two", tmp_path, "one"))


def test_a_step_starts_only_after_those_it_needs(tmp_path):
    ended = tmp_path / "ended"
    slow = (sys.executable, "-c", f"import time; time.sleep(1); open({str(ended)!r}, 'w')")
    needs_it = (sys.executable, "-c", f"open({str(ended)!r}); open({str(tmp_path / 'next')!r}, 'w')")
    run(tmp_path / "demo", Step("slow", slow, ended), Step("next", needs_it, tmp_path / "next", ("slow",)))


def test_the_time_left_is_that_of_the_steps_in_their_order():
    takes = {"a": 10.0, "b": 4.0, "c": 5.0, "d": 7.0, "e": 1.0}
    needs = {"c": ("b",), "d": ("a",), "e": ("c", "d")}
    steps = [Step(name, (), Path(name), needs.get(name, ())) for name in takes]
    a, b, *rest = steps
    assert seconds_left(steps, {}, 2, lambda step: takes[step.name]) == 18, "b, c and nothing beside a, d, e"
    assert seconds_left(steps, {}, 1, lambda step: takes[step.name]) == sum(takes.values())
    assert seconds_left(rest, {a: 3.0, b: 60.0}, 2, lambda step: takes[step.name]) == 15, "b should have ended"


def test_what_the_end_waits_for_longest_has_the_cores_first(tmp_path):
    """Here `last` needs `first`, so `beside` gives way to `first`, and nothing gives way to `beside`."""
    program = "import os, sys, time\ntime.sleep(0.3)\nopen(sys.argv[1], 'w').write(str(os.nice(0)))"

    def says_niceness(name: str, *needs: str) -> Step:
        output = tmp_path / f"{name}.txt"
        return Step(name, (sys.executable, "-c", program, str(output)), output, needs)

    steps = [says_niceness("first"), says_niceness("beside"), says_niceness("last", "first")]
    assert time_to_end(steps) == {"first": 2 * SHORT_S, "beside": SHORT_S, "last": SHORT_S}
    run(tmp_path / "demo", *steps)
    own = os.nice(0)
    found = {step.name: int(step.output.read_text()) for step in steps}
    assert found == {"first": own, "beside": min(own + LESS_URGENT, 19), "last": own}


def test_every_long_step_is_a_step_of_the_demo(tmp_path):
    assert set(USUAL_S) <= {step.name for step in Story(tmp_path, 1, 1.0, 8765).steps()}


def test_a_step_of_another_seed_takes_as_long_as_the_demos():
    steps = [
        Step(name, (), Path(name)) for name in ("train-stage2_t5-without_stage1-seed2", "train-stage2_t5_own", "x")
    ]
    assert [usual_s(step) for step in steps] == [USUAL_S["train-stage2_t5"], USUAL_S["train-stage2_t5_own"], SHORT_S]


ABLATIONS = ablations.steps_of(Path("demo"), Path("out"), (1, 2), (ablations.FIGURE_5, ablations.TABLE_6), 1.0, 9000, 5)


@pytest.mark.parametrize("steps", [Story(Path("demo"), 1, 1.0, 8765).steps(), ABLATIONS])
def test_every_step_stands_after_those_it_needs(steps):
    known: set[str] = set()
    for step in steps:
        assert set(step.needs) <= known, step.name
        assert step.name not in known
        known.add(step.name)
    ports = [step.command[4] for step in steps if step.name.startswith("train-")]
    assert len(ports) == len(set(ports)), "trainings side by side"


def test_ablations_differ_in_what_they_are_about_and_write_nothing_into_the_demo():
    commands = {step.name: step.command for step in ABLATIONS}
    for name, edit in (("stage2_t5", "init_weights=null"), ("stage2_opt", "init_weights=null"),
                       ("finetune_retrieval", "objectives.itg_weight=0")):  # fmt: skip
        other = {"stage2": "without_stage1", "finetune": "without_itg"}[name.partition("_")[0]]
        plain, changed = commands[f"train-{name}-seed2"], commands[f"train-{name}-{other}-seed2"]
        more = [word for word in changed if word not in plain and not word.startswith("run.output=")]
        assert [word for word in more if not word.isdecimal()] == [edit], "but for the port"
        assert "seed=2" in plain and "init_weights=out/stage1-seed2" in plain
    assert not [step.name for step in ABLATIONS if step.output.is_relative_to("demo")]
    evaluated = [name for name in commands if name.startswith("eval-stage2_opt-seed1")]
    assert evaluated == [f"eval-stage2_opt-seed1-step{step}" for step in (70, 140, 210, 280, 350)]


def test_a_finished_step_says_what_is_left_and_names_its_page(tmp_path, capsys):
    page = tmp_path / "page.html"
    step = Step("page", (sys.executable, "-c", f"open({str(page)!r}, 'w')"), page)
    run(tmp_path / "demo", step, writes("last", tmp_path, "page"))
    said = capsys.readouterr().out
    assert f"look at {page}" in said
    assert said.count("; left: 1 steps, about ") == 1


def test_a_failing_step_is_named_with_its_log_and_ends_the_ones_beside_it(tmp_path):
    fails = Step("fails", (sys.executable, "-c", "raise SystemExit('no such table')"), tmp_path / "never")
    sleeps = Step("sleeps", (sys.executable, "-c", "import time; time.sleep(600)"), tmp_path / "never")
    with pytest.raises(StepFailed, match=r"no such table\nerror: step fails: ended with exit code 1;.*fails\.log"):
        run(tmp_path / "demo", sleeps, fails)
    assert marked(tmp_path) == []


def test_what_a_killed_demo_left_running_is_ended_before_anything_starts(tmp_path):
    started = tmp_path / "started"
    child = f"import pathlib, time; pathlib.Path({str(started)!r}).write_text('1'); time.sleep(600)"
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    program = (
        "import sys; from pathlib import Path; from data_prep.miniature.steps import Runner, Step\n"
        f"step = Step('long', (sys.executable, '-c', {grandchild!r}), Path('never'))\n"
        f"Runner(Path({str(tmp_path / 'demo')!r}), [step], 2).run()"
    )
    demo = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    wait_for(started)
    demo.send_signal(signal.SIGKILL)
    demo.wait()
    assert len(marked(tmp_path)) == 2
    run(tmp_path / "demo", writes("first", tmp_path))
    assert marked(tmp_path) == []


def test_a_command_beside_runs_once_and_only_as_long_as_its_steps(tmp_path):
    ready, outputs = tmp_path / "ready", [tmp_path / "one", tmp_path / "two"]
    serves = f"import time; open({str(ready)!r}, 'a').write('x'); time.sleep(600)"
    waits = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)\nopen(sys.argv[2], 'w')"
    beside = (sys.executable, "-c", serves)
    steps = [
        Step(path.name, (sys.executable, "-c", waits, str(ready), str(path)), path, beside=beside) for path in outputs
    ]
    run(tmp_path / "demo", *steps)
    assert ready.read_text() == "x"
    assert marked(tmp_path) == []


def test_a_command_beside_that_ends_stops_the_steps_that_need_it(tmp_path):
    fails = (sys.executable, "-c", "import sys; sys.exit('error: port 8765: in use')")
    waits = Step("waits", (sys.executable, "-c", "import time; time.sleep(600)"), tmp_path / "never", beside=fails)
    with pytest.raises(StepFailed, match=r"port 8765: in use(.|\n)*step waits-beside: ended with exit code 1"):
        run(tmp_path / "demo", waits)
    assert marked(tmp_path) == []


def test_what_a_step_began_with_other_settings_is_moved_aside(tmp_path):
    folder = tmp_path / "run"
    makes = "import os, sys; os.makedirs(sys.argv[1]); open(sys.argv[1] + '/' + sys.argv[2], 'w')"

    def step(name):
        return Step("makes", (sys.executable, "-c", makes, str(folder), name), folder / name, folder=folder)

    run(tmp_path / "demo", step("one"))
    run(tmp_path / "demo", step("two"))
    assert (folder / "two").exists() and not (folder / "one").exists()
    assert (tmp_path / "run.old" / "one").exists()


def test_a_shortened_demo_shortens_the_steps_of_the_recipes():
    for run, steps in STEPS.items():
        recipe = yaml.safe_load(Path(f"pipeline/recipes/miniature_{run}.yaml").read_text())
        assert recipe["run"]["steps"] == steps
