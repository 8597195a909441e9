"""`python -m pipeline`: the map of all commands of the project, a line each, in the order of work.

A line is not written here. It is the first line of the command's docstring, or the comment of a script or make target.
The source is read, not imported, so the answer is quick.
"""

import ast
import re
from pathlib import Path

from pipeline.command_line import Parser

ROOT = Path(__file__).parents[1]
MAP = {
    "start": ["make setup", "make demo", "make ablations"],
    "prepare data": [
        "data_prep.download", "data_prep.duplicates", "data_prep.capfilt", "data_prep.index", "data_prep.split",
        "data_prep.verify", "data_prep.export_lavis", "slurm/download.sbatch", "slurm/capfilt.sbatch",
    ],
    "train": [
        "pipeline.config", "pipeline.plan", "pipeline.fetch", "pipeline.train", "pipeline.convert",
        "slurm/train.sbatch", "slurm/chain",
    ],
    "evaluate": [
        "eval.run", "eval.score", "eval.audit", "eval.submit", "eval.watch", "eval.select",
        "slurm/eval.sbatch", "slurm/score.sbatch", "slurm/eval_watch", "make lmms",
    ],
    "look": [
        "data_prep.gallery", "pipeline.generate", "pipeline.match", "pipeline.embed", "eval.report", "eval.curves",
        "pipeline.serve", "pipeline.mirror",
    ],
    "change the project": [
        "make lock", "make format", "make check", "make quick", "make test", "make bench", "make gpu",
        "make gpu-wheels", "make clean", "make help",
    ],
}  # fmt: skip
INTERNAL = {
    "pipeline": "this map",
    "pipeline.cost.recipe_facts": "answers the job scripts",
    "data_prep.miniature.demo": "make demo",
    "data_prep.miniature.ablations": "make ablations",
    "data_prep.miniature.world": "a step of make demo",
    "data_prep.miniature.server": "a step of make demo",
    "data_prep.miniature.towers": "a step of make demo",
    "data_prep.miniature.own_pictures": "a step of make demo",
    "data_prep.miniature.summary": "a step of make demo",
    "data_prep.miniature.report_picture": "makes the picture of the README",
}
"""Modules that can be run and are not on the map, and why."""
COMMAND_IN_DOCSTRING = re.compile(r":? ?`(python -m|deepspeed) [^`]*`:? ?")


def first_line(name: str) -> str:
    """What a command of the map does, in its own words."""
    if name.startswith("make "):
        target = re.escape(name.removeprefix("make "))
        found: list[str] = re.findall(
            rf"^{target}:.*?## *(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
        [line] = found
    elif name.startswith("slurm/"):
        line = (
            (ROOT / name).read_text(encoding="utf-8").splitlines()[1].removeprefix("#").partition(":  ")[0]
        )  # after it an example
    else:
        module = ROOT / Path(*name.split("."))
        source = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
        line = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        line = COMMAND_IN_DOCSTRING.sub("", line)
    return line.strip().rstrip(".:")


def command_map() -> str:
    lines = []
    for part, names in MAP.items():
        lines += ["", f"{part}:"]
        for name in names:
            command = name if " " in name or "/" in name else f"python -m {name}"
            lines.append(f"  {command:<33}{first_line(name)}")
    return "\n".join(lines[1:])


def main() -> None:
    Parser(prog="python -m pipeline", description="Print the map of all commands of the project.").parse_args()
    print(command_map())
    print("\nEach `python -m` command answers --help. pipeline.train runs by `deepspeed --module` on several GPUs.")


if __name__ == "__main__":
    main()
