"""Download the weights that recipes need, on a machine with network: `python -m pipeline.fetch RECIPE...`.

It takes image encoders, BERT, language models and their tokenizers from the hub into HF_HOME: configurations,
tokenizers and safetensors, never a pickle. What is there is not downloaded again. Compute nodes then run with
HF_HUB_OFFLINE=1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.command_line import Parser, finish, print_settings, printable
from pipeline.config import load_recipe

RECIPE_FIELD = {"image encoder": "vision.name", "Q-Former's start": "qformer.bert", "language model": "language.name"}


Needed = dict[tuple[str, str | None], str]
"""(repository, revision) -> the part that needs it."""


def needed(recipes: Sequence[Path], edits: Sequence[str], also: Sequence[str]) -> tuple[Needed, list[str]]:
    """What the recipes need of the hub, and the local folders that they name."""
    from pipeline.weights.tower_sources import towers_of

    repositories: Needed = {}
    folders: list[str] = []
    for path in recipes:
        for tower in towers_of(load_recipe(path, edits)):
            if tower.repository:
                repositories.setdefault((tower.repository, tower.revision), tower.part)
            elif tower.name not in folders:
                folders.append(tower.name)
    for name in also:
        repositories.setdefault((name, None), "also")
    return repositories, folders


def fetch(recipes: Sequence[Path], edits: Sequence[str], also: Sequence[str], only_list: bool) -> Path:
    """Print what is needed and, unless `only_list`, download it. Returns HF_HOME's folder.

    Raises ValueError after all others were tried, in one line that names the first repository that failed.
    """
    from huggingface_hub import constants

    if only_list:
        for path in recipes:
            print(printable(f"{path}:"))
            _print_list(*needed([path], edits, ()))
        if also:
            print("--also:")
            _print_list(*needed((), (), also))
        return Path(constants.HF_HOME)
    repositories, folders = needed(recipes, edits, also)
    _print_list({}, folders)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE: is set, so nothing can be downloaded; unset it on a machine with network")
    faults = _download(repositories)
    if faults:
        raise ValueError(f"{len(faults)} of {len(repositories)} repositories failed, first {faults[0]}; each is "
                         "printed above")  # fmt: skip
    return Path(constants.HF_HOME)


def _print_list(repositories: Needed, folders: Sequence[str]) -> None:
    for (repository, revision), part in repositories.items():
        print(printable(f"  {_shown(repository, revision)}: {part}"))
    for name in folders:
        print(printable(f"  {name}: a local folder{'' if Path(name).is_dir() else ', which is not there'}"))


def _download(repositories: Needed) -> list[str]:
    """Download all, after their sizes were printed; returns the names of those that failed."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # documented, not listed

    from pipeline.weights.hub_files import Wanted, download, look_up

    disable_progress_bars()  # of each file; one line says how far a repository is
    faults, found = [], list[tuple[str, Wanted]]()
    for (repository, revision), part in repositories.items():
        try:
            wanted = look_up(repository, revision)
        except ValueError as error:
            print(printable(str(error)), file=sys.stderr)
            faults.append(_shown(repository, revision))
            continue
        found.append((part, wanted))
        size, missing = (number / 1e9 for number in (wanted.bytes, wanted.missing_bytes))
        print(printable(f"{_shown(repository, revision)}: {part}, {size:.2f} GB, {missing:.2f} GB to download"))
    _check_space(sum(wanted.missing_bytes for _, wanted in found))
    for part, wanted in found:
        try:
            folder = download(wanted)
        except ValueError as error:
            print(printable(str(error)), file=sys.stderr)
            faults.append(wanted.repository)
            continue
        if wanted.is_conversion:
            field = RECIPE_FIELD.get(part, "the model")
            print(printable(f"{wanted.repository} is from a conversion to safetensors: set {field}={folder}"))
    return faults


def _check_space(missing: int) -> None:
    """Raises ValueError when the disk of HF_HOME has too little space for the download."""
    import shutil

    from huggingface_hub import constants

    home = Path(constants.HF_HOME)
    home.mkdir(parents=True, exist_ok=True)
    if missing > (free := shutil.disk_usage(home).free):
        raise ValueError(f"HF_HOME {home}: has {free / 1e9:.1f} GB free, but {missing / 1e9:.1f} GB are to be "
                         "downloaded; set it to a folder on a larger disk")  # fmt: skip


def _shown(repository: str, revision: str | None) -> str:
    return f"{repository}@{revision}" if revision else repository


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m pipeline.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", metavar="RECIPE", nargs="*", type=Path, help="recipes, such as pipeline/recipes/*")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="edits of every recipe")
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME", help="more of the hub, such as CapFilt's")
    parser.add_argument("--list", action="store_true", help="only print the names, recipe by recipe; needs no network")
    options = parser.parse_args(arguments)
    if not options.recipes and not options.also:
        parser.error("argument RECIPE: is missing; name one or more, or --also")
    print_settings(options)

    def work() -> None:
        print(fetch(options.recipes, options.set, options.also, options.list))

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
