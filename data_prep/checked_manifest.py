"""Loads a manifest for a command that reads whatever it is given: every field's type is checked before it is used."""

from pathlib import Path

from pipeline.data.manifest import Manifest, Shard, load_manifest

TEXTS, NUMBERS = ("path", "index", "source", "sha256"), ("bytes", "samples", "captions")
KINDS = dict.fromkeys(TEXTS, str) | dict.fromkeys(NUMBERS, int) | {"provenance": dict}


def load_checked(path: Path) -> Manifest:
    """As `load_manifest`; raises ValueError, naming file and field, on a value of the wrong type as well."""
    try:
        manifest = load_manifest(path)
    except (TypeError, AttributeError, RecursionError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"manifest {path}: not a valid manifest ({error})") from error
    for number, shard in enumerate(manifest.shards):
        if fault := _fault(shard):
            raise ValueError(f"manifest {path}: shard {number}: {fault}")
    return manifest


def _fault(shard: Shard) -> str | None:
    for name, kind in KINDS.items():
        value = getattr(shard, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"{name} is no {kind.__name__}"
        if isinstance(value, int) and not 0 <= value < 1 << 62:
            return f"{name} is {'negative' if value < 0 else 'too large'}"
        if isinstance(value, str) and not (value and value.isprintable()):
            return f"{name} is empty or unprintable"
    dropped = shard.provenance.get("dropped", {})
    if not isinstance(dropped, dict) or not all(isinstance(number, int) for number in dropped.values()):
        return "dropped is not whole numbers by reason"
    return None
