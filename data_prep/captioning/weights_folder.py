"""Loads a model and its processor from a local transformers folder, or says in one line what is wrong with it."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from pipeline.files import sha256_of
from pipeline.weight_sets import check_weight_sets

MODEL_TYPES = {"BlipForConditionalGeneration": "blip", "CLIPModel": "clip"}
"""transformers class -> the `model_type` in the config.json of its folders."""


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_pretrained(folder: Path, flag: str, model_class: str, processor_class: str, device: str) -> tuple[Any, Any]:
    """(model in eval mode on `device`, processor): fp32 on a CPU, bf16 elsewhere.

    Raises ValueError, with `flag` and folder, when a file is missing, damaged or of another kind, or weights are
    missing, or two sets of them differ.
    """
    _check_config(folder, flag, MODEL_TYPES[model_class])
    check_weight_sets(folder)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        processor = getattr(transformers, processor_class).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model, loading = getattr(transformers, model_class).from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers, tokenizers and safetensors raise many kinds of errors
        raise ValueError(
            f"{flag} {folder}: cannot be loaded as {model_class} ({type(error).__name__}: {error})"
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"{flag} {folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return model.to(device).eval(), processor


def local_folder(name: Path, flag: str) -> Path:
    """The folder itself, or the folder of the Hugging Face cache for a hub id, which is downloaded if that is allowed.

    Raises ValueError, with `flag`, when there is neither.
    """
    if name.is_dir() or not HUB_ID.fullmatch(str(name)):
        return name
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except Exception as error:  # hub, network and cache raise many kinds of errors
        raise ValueError(
            f"{flag} {name}: is not a folder, and not in the Hugging Face cache; name a folder of weights"
        ) from error


def folder_digest(folder: Path, flag: str) -> str:
    """sha256 over the names and contents of the folder's files, on which captions and scores depend.

    Raises ValueError, with `flag`, when it is not a folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{flag} {folder}: is not a folder of weights; name a folder or a hub id")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.name}\n{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _check_config(folder: Path, flag: str, model_type: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"{flag} {folder}: is not a folder of weights; name a folder or a hub id")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{flag} {folder}: has no readable config.json with a model_type ({error})") from error
    if found != model_type:
        raise ValueError(f"{flag} {folder}: its model_type is {found!r}, expected {model_type!r}")
