"""What a frozen model that cannot be loaded is reported as: one line with the reason and what to do."""

import re


def first_line(error: Exception) -> str:
    """The reason in one line: libraries raise many kinds of errors, some without a message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def missing_package(error: Exception) -> str | None:
    """The package whose lack is the reason, if that is it: transformers says it in errors of several kinds."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    asked = re.search(r"pip install (?:-U |--upgrade )?['\"]?([\w-]+)", str(error))
    return asked[1] if asked else None


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
    return ValueError(
        f"{field}: cannot be loaded ({first_line(error)}); a folder with this name is damaged: download it again. "
        "Without network, download the weights on another machine (`hf download NAME`) and copy its HF_HOME here, or "
        f"set a local folder, {folder}"
    )
