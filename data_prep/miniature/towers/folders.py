"""Writes tower folders whole or not at all, and recognises finished towers by the settings that made them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.files import sha256_of_json, sync_file

SETTINGS_FILE = "tower.json"
VERSION = 1
"""Increase it when the same settings make another tower than before."""


def settings_digest(name: str, settings: Any, seed: int, made_from: dict[str, str]) -> str:
    """sha256 over everything that a tower depends on; `made_from` holds the digests of what it learns from."""
    stated = {"name": name, "settings": asdict(settings), "seed": seed, "made_from": made_from, "version": VERSION}
    return sha256_of_json(stated)


def is_finished(folder: Path, digest: str) -> bool:
    """Whether the folder holds a finished tower with this digest."""
    try:
        return bool(json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_folder(folder: Path, digest: str, settings: Any, save: Callable[[Path], None]) -> None:
    """Let `save` fill a hidden folder beside it, then rename that: after a kill, no half folder has the final name."""
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save(fresh)
    content = {"digest": digest, "settings": asdict(settings)}
    (fresh / SETTINGS_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in fresh.rglob("*"):
        if path.is_file():
            sync_file(path)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
