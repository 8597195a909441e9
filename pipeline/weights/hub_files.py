"""What is taken from a repository on the hub: configurations, tokenizers and safetensors. Never a pickle."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.progress_line import ProgressLine

ENDINGS = (".json", ".txt", ".model", ".safetensors")  # .model: sentencepiece
OTHER_FRAMEWORKS = (".bin.index.json", ".msgpack.index.json", ".h5.index.json")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
)  # the first that is there
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
CONVERTER, CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"  # the hub's own bot

MB = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """Files of a repository, and how many of their bytes are not here. `is_conversion`: a recipe must name their
    folder, as loaders look at the main branch."""

    repository: str
    revision: str | None
    files: tuple[str, ...]
    bytes: int
    missing_bytes: int
    is_conversion: bool


def chosen_files(names: Iterable[str]) -> list[str]:
    """The files to take; [] when there are no safetensors. Of several sets of weights, the one that loaders choose."""
    there = [name for name in names if "/" not in name and name.endswith(ENDINGS)]
    first = next((name for name in WEIGHTS if name in there), None)
    if first is None:
        return []
    weights = {first, *(filter(SHARD.fullmatch, there) if first.endswith(".json") else ())}
    others = (name for name in there if not name.endswith((".safetensors", ".safetensors.index.json")))
    return sorted(weights | {name for name in others if not name.endswith(OTHER_FRAMEWORKS)})


def look_up(repository: str, revision: str | None = None) -> Wanted:
    """What to take; nothing is downloaded. Raises ValueError in one line when the hub does not give it, or has no
    safetensors of it."""
    from huggingface_hub import HfApi

    try:
        found, is_conversion = _listed(repository, revision), False
        if not found and revision is None and (revision := _conversion(HfApi(), repository)):
            found, is_conversion = _listed(repository, revision), True
    except Exception as error:  # the hub's library raises many kinds of errors
        raise _not_given(repository, error) from error
    if not found:
        raise ValueError(f"{repository}: the hub has no safetensors of it, and pickles are not taken; choose other "
                         "weights, or convert them on a machine of yours and name the folder")  # fmt: skip
    sizes = [(each.file_size or 0, each.will_download) for each in found]
    missing = sum(size for size, is_missing in sizes if is_missing)
    files = tuple(each.filename for each in found)
    return Wanted(repository, revision, files, sum(size for size, _ in sizes), missing, is_conversion)


def download(wanted: Wanted) -> Path:
    """Download what is missing here, and say how far it is; returns the folder. Raises ValueError as `look_up` does."""
    import glob

    from huggingface_hub import snapshot_download

    patterns = [glob.escape(each) for each in wanted.files]
    try:
        with _Arrived(wanted):
            return Path(snapshot_download(wanted.repository, revision=wanted.revision, allow_patterns=patterns))
    except Exception as error:  # as above
        raise _not_given(wanted.repository, error) from error


class _Arrived(ProgressLine):
    """Megabytes of a repository, by what its folder in the hub's cache holds: files that are not whole count, too."""

    def __init__(self, wanted: Wanted) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        name = repo_folder_name(repo_id=wanted.repository, repo_type="model")
        self._folder = Path(constants.HF_HUB_CACHE, name, "blobs")
        self._before = self._stored() - (wanted.bytes - wanted.missing_bytes)  # of other files
        start = (wanted.bytes - wanted.missing_bytes) // MB
        super().__init__(wanted.repository, wanted.bytes // MB, "MB", done=start)

    def text(self) -> str:
        self.done = (self._stored() - self._before) // MB
        return super().text()

    def _stored(self) -> int:
        found = 0
        for path in self._folder.glob("*"):
            with suppress(OSError):  # renamed at this moment
                found += path.stat().st_size
        return found


def _not_given(repository: str, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{repository}: the hub does not give it ({reason}); correct the name, log in with `hf auth "
                      "login` if it is gated, or try again")  # fmt: skip


def _listed(repository: str, revision: str | None) -> list[Any]:
    """The files to take, with their sizes."""
    from huggingface_hub import snapshot_download

    found: Any = snapshot_download(repository, revision=revision, dry_run=True)
    wanted = set(chosen_files(each.filename for each in found))
    return [each for each in found if each.filename in wanted]


def _conversion(api: Any, repository: str) -> str | None:
    """The revision in which the hub's bot converted the weights, in an open pull request, as transformers takes it."""
    for each in api.get_repo_discussions(repository, author=CONVERTER, discussion_type="pull_request"):
        if (each.is_pull_request, each.status, each.author, each.title) == (True, "open", CONVERTER, CONVERSION):
            return str(each.git_reference)
    return None
