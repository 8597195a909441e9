"""python -m tests.gpu.run: all checks that need a GPU, on one machine, in some minutes; a table and a page of results.

Parts that measure no time run first, at the same time. The others follow, one by one; the next one imports meanwhile.
Each is a process with a time limit, and a part that fails or hangs does not stop the rest. Exits with 1 when a check
failed. This file needs Python alone; what the machine lacks is installed from gpu_wheels/ into the output folder.
"""

import argparse
import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.gpu.plan import BUDGET_S, PARTS, Part
from tests.gpu.wheels import FOLDER, IMPORTS

ROOT = Path(__file__).parents[2]
POLL_S = 0.2
LEAST_S = 10.0  # with less time left, a part is not begun
SITE = "site"
WARM_CACHE = "inductor"  # compiled kernels, which later parts use again


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that parts end, too
    options = arguments()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        return one_part(options)
    began, results = time.monotonic(), options.output / "results.jsonl"
    lines = installed(options.output)
    wanted = [part for part in PARTS if not options.parts or part.name in options.parts]
    together, alone = ([part for part in wanted if part.together == each] for each in (True, False))
    for group, jobs in ((together, options.jobs), (alone, min(2, options.jobs))):
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            for found in pool.map(lambda part: started(part, options, began), group):
                lines += found
                results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seconds = time.monotonic() - began
    lines.append(line_of("all", "seconds in all", round(seconds, 1), f"<= {options.budget_s:g}",
                         seconds <= options.budget_s))  # fmt: skip
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return reported(lines, options)


def arguments() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", metavar="DIR", help="default: runs/gpu")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: the logic alone, in tiny sizes")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on a GPU, too: no figure has a bound then")
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"some of: {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=8, help="parts that run at the same time, of those that may")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="time for all (default: %(default)s)")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)  # a part's own process
    options = parser.parse_args()
    options.tiny = options.tiny or options.device == "cpu"
    return options


def line_of(part: str, check: str, value: Any, bound: str, ok: bool) -> dict[str, Any]:
    return {"part": part, "check": check, "value": value, "bound": bound, "ok": ok}


def installed(output: Path) -> list[dict[str, Any]]:
    """Put wheels of gpu_wheels/ where this and the parts' processes find them, if a package is missing."""
    site = output / SITE
    sys.path.insert(0, str(site))
    missing = [name for name in IMPORTS if importlib.util.find_spec(name) is None]
    wheels = sorted((ROOT / FOLDER).glob("*.whl"))
    if missing and wheels:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*command, "--upgrade", "--target", str(site), *map(str, wheels)], check=False)
        importlib.invalidate_caches()
        missing = [name for name in IMPORTS if importlib.util.find_spec(name) is None]
    return [line_of("machine", "missing packages", " ".join(missing) or "none", "none", not missing)]


def one_part(options: argparse.Namespace) -> int:
    """In a part's own process."""
    from tests.gpu.checks import Checks

    [part] = [each for each in PARTS if each.name == options.part]
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder = options.output / part.name
    folder.mkdir(exist_ok=True)
    code, checks = 0, Checks(part.name, options.device, options.tiny, folder)
    try:
        module = importlib.import_module(part.module)
        getattr(module, "prepare", lambda _checks: None)(checks)
        with contextlib.nullcontext() if part.together else the_gpu_alone(options.output):
            began_file(options.output, part.name).touch()
            getattr(module, part.function)(checks)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # DeepSpeed's process group may be open, and closing it may wait for ever


@contextlib.contextmanager
def the_gpu_alone(output: Path) -> Iterator[None]:
    """The next part's process imports and prepares while this one measures; then it waits here for its turn."""
    with (output / "turn.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def began_file(output: Path, name: str) -> Path:
    """Made when a part's turn has come: its time counts from then on."""
    return output / f"{name}.began"


def wait_within(process: subprocess.Popen[Any], mark: Path, limit_s: float, ends: float) -> int | None:
    """The exit code, or None when the part's time, or the time for all, is over."""
    while time.monotonic() < ends:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_S)
        if mark.exists() and time.time() > mark.stat().st_mtime + limit_s:
            return None
    return None


def started(part: Part, options: argparse.Namespace, began: float) -> list[dict[str, Any]]:
    """Run a part's process within its time. Its lines, and how it ended."""
    left = options.budget_s - (time.monotonic() - began)
    limit = part.limit_s if options.device == "cuda" else options.budget_s
    if left < LEAST_S:
        return [line_of(part.name, "began", f"{left:.0f} s were left", f">= {LEAST_S:g} s", False)]
    command = [sys.executable, "-m", "tests.gpu.run", "--part", part.name, "--device", options.device]
    command += ["--output", str(options.output), *(["--tiny"] if options.tiny else [])]
    log, at = options.output / f"{part.name}.log", time.monotonic()
    printed, mark = options.output / f"{part.name}.jsonl", began_file(options.output, part.name)
    mark.unlink(missing_ok=True)
    with printed.open("w") as out, log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(part, options), stdout=out, stderr=errors, start_new_session=True
        )
        try:
            code = wait_within(process, mark, limit, began + options.budget_s)
        finally:
            end(process)
    seconds = time.time() - mark.stat().st_mtime if mark.exists() else time.monotonic() - at
    lines = read_lines(printed)
    lines.append(line_of(part.name, "seconds", round(seconds, 1), f"<= {limit:.0f}", code is not None))
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        lines.append(line_of(part.name, "exit code", f"{code}: {' '.join(last)[:300]}", "== 0", False))
    if len(lines) == 1:
        lines.append(line_of(part.name, "checks", 0, ">= 1", False))
    verdict = "ok" if all(line["ok"] for line in lines) else "FAILED"
    print(f"{part.name}: {verdict}, {len(lines)} checks, {seconds:.0f} s", file=sys.stderr, flush=True)
    return lines


def environment(part: Part, options: argparse.Namespace) -> dict[str, str]:
    paths = [str(options.output / SITE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(options.output / WARM_CACHE),
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        **({"OMP_NUM_THREADS": "2"} if part.together else {}),  # they share the cores
    }


def end(process: subprocess.Popen[Any]) -> None:
    """The part and what it started: nothing of it may take time from the next one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of JSON among what a part printed; libraries print, too."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and {"part", "check", "value", "bound", "ok"} <= set(content):
            found.append(content)
    return found


def reported(lines: list[dict[str, Any]], options: argparse.Namespace) -> int:
    """The table, the page, and the exit code."""
    width = max(len(f"{line['part']}: {line['check']}") for line in lines)
    for line in lines:
        mark = "ok    " if line["ok"] else "FAILED"
        print(f"{mark} {line['part'] + ': ' + line['check']:<{width}}  {line['value']}  ({line['bound']})")
    failed = [line for line in lines if not line["ok"]]
    for line in failed:
        print(f"\nFAILED {line['part']}: {line['check']}\n    found {line['value']}, wanted {line['bound']}")
    try:
        from tests.gpu.results_page import write_page

        write_page(lines, options.output)
    except Exception as error:  # the table above is what counts
        print(f"no page: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"\n{len(lines) - len(failed)} passed, {len(failed)} failed; {options.output}/results.html")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
