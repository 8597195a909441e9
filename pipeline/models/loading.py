"""What a frozen model that cannot be loaded is reported as: one line with the reason and what to do."""

import re
from pathlib import Path
from textwrap import shorten
from typing import Any

from pipeline.weight_sets import check_weight_sets

LONGEST = 300  # characters of a reason
NAMED = 3  # missing tensors in an error line; more would hide the rest of it


def first_line(error: Exception) -> str:
    """The reason in one line: libraries raise many kinds of errors, some without a message."""
    lines = str(error).splitlines() or [type(error).__name__]
    if not lines[0].endswith(":") or len(lines) == 1:
        return lines[0]
    return shorten(f"{lines[0]} {lines[1].strip()}", LONGEST, placeholder=" ...")  # torch names missing tensors there


def missing_package(error: Exception) -> str | None:
    """The package whose lack is the reason, if that is it: transformers says it in errors of several kinds."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    asked = re.search(r"pip install (?:-U |--upgrade )?['\"]?([\w-]+)", str(error))
    return asked[1] if asked else None


def load_of_transformers(auto_class: Any, name: str, **options: Any) -> tuple[Any, list[str]]:
    """A model by hub id or folder, and the sorted names of its tensors that the files lack: transformers draws those at
    random. Raises ValueError when the folder has two sets of weights that differ, and what transformers raises."""
    check_weight_sets(_folder_of(name))
    model, loading = auto_class.from_pretrained(name, output_loading_info=True, trust_remote_code=False, **options)
    return model, sorted(loading["missing_keys"])


def refuse_missing(names: list[str]) -> None:
    """Raises ValueError naming tensors that the weights lack."""
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise ValueError(f"its weights lack {', '.join(names[:NAMED])}{more}")


def _folder_of(name: str) -> Path:
    """The local folder of a model, also that of a hub id in the cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir() or name.count("/") > 1:
        return Path(name)
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else Path(name)


def not_loaded(field: str, error: Exception, folder: str = "FOLDER") -> ValueError:
    """The error for a recipe field, as `qformer.bert 'NAME'`; `folder` is the form of a local folder's name."""
    package = missing_package(error)
    if package:
        return ValueError(
            f"{field}: cannot be loaded, as the package {package} is missing or too old ({first_line(error)}); install "
            "what requirements.txt names (`make setup`)"
        )
    if "trust_remote_code" in str(error):
        return ValueError(
            f"{field}: needs program code from its folder, which is never run; choose a model that transformers knows"
        )
    name = re.search(r"'(?:local-dir:|transformers:)?([/.~][^']*)'", field)
    if name and not Path(name[1]).exists():
        return ValueError(f"{field}: there is no such folder; correct the path, or give a hub id")
    return ValueError(
        f"{field}: cannot be loaded ({first_line(error)}); a folder with this name is damaged: download it again. "
        "Without network, download the weights on another machine (`pipeline.fetch`) and copy its HF_HOME here, or "
        f"set a local folder, {folder}"
    )
