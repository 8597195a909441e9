"""What a frozen model that cannot be loaded is reported as: one line with the reason and what to do."""


def first_line(error: Exception) -> str:
    """The reason in one line: libraries raise many kinds of errors, some without a message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def not_loaded(field: str, error: Exception, folder: str = "FOLDER") -> ValueError:
    """The error for a recipe field, as `qformer.bert 'NAME'`; `folder` is the form of a local folder's name."""
    return ValueError(
        f"{field}: cannot be loaded ({first_line(error)}); a folder with this name is damaged: download it again. "
        "Without network, download the weights on another machine (`hf download NAME`) and copy its HF_HOME here, or "
        f"set a local folder, {folder}"
    )
