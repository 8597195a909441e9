"""The guard: training pictures that look like evaluation pictures, and training sources known to share pictures.

Training hashes come from parquet files with a column `phash` (64 bits, null for flat pictures) and optionally `status`
(rows that are not "kept" are left out) and `url` or `key`: the ledgers beside downloaded shards are such files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.reporting.evaluations import Evaluation
from eval.sets.official_files import SampleId
from pipeline.pictures.near_hashes import Hashes, near_pairs
from pipeline.pictures.perceptual_hash import hash_of_file

NOT_CHECKED = "Train/test overlap not checked: give --training-hashes"
UNKNOWN = "not all that it was trained on is known here (weights of others, URLs, a manifest that is gone or spoilt)"
SHOWN = 10
MOST_STAGES = 4  # of weights that began with others
WEIGHTS = "trainable.safetensors"
MOST_HEADER_BYTES = 100_000_000  # as safetensors has it
ROWS_AT_ONCE = 1_000_000
KNOWN_FILE = Path(__file__).with_name("shared_pictures.yaml")


def overlap_section(evaluations: Sequence[Evaluation], training: Sequence[Path]) -> str:
    """What the guard found, one entry an evaluation set; without training hashes, what is known of the sources, and
    that nothing was compared."""
    by_set: dict[Any, list[Evaluation]] = {}
    for each in evaluations:
        by_set.setdefault((each.task["annotations_sha256"], each.task["split"]), []).append(each)
    items = []
    for same in by_set.values():
        found = [f"{escape(source)}: {escape(why)}" for source, why in known_overlaps(same)]
        found += [f"{escape(each.folder.name)}: {UNKNOWN}" for each in _of_unknown(same)]
        if training:
            images = {image: path for each in same for image, path in each.images.items()}
            found.append(_looked_for(images, training))
        if found:
            title = max(same, key=lambda each: len(each.images)).title
            items.append(f"<li><b>{escape(title)}</b><ul>{''.join(f'<li>{line}</li>' for line in found)}</ul></li>")
    if not by_set:
        return ""
    listed = f'<ul class="overlap">{"".join(items)}</ul>' if items else ""
    hint = "" if training else f'<p class="note">{NOT_CHECKED}.</p>'
    return f"<h2>Training pictures in evaluation sets</h2>{listed}{hint}"


def known_overlaps(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(training source, what it shares) for the sources that weights evaluated on this set were trained on; of
    published sets and parts of them alone, as only their pictures are known."""
    known = yaml.safe_load(KNOWN_FILE.read_text(encoding="utf-8"))
    found = {
        (source, known.get(source, {}).get(each.format_of))
        for each in evaluations
        if each.is_of_published
        for source in _sources(each)[0]
    }
    return sorted((source, why) for source, why in found if why)


def _of_unknown(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those on a published set with weights of whose training some part is not known."""
    return [each for each in evaluations if each.is_of_published and not _sources(each)[1]]


def _sources(evaluation: Evaluation) -> tuple[set[str], bool]:
    """Of the manifests, where they still lie, that the weights and those they began with were trained on; and whether
    that is all: weights of others, URLs, a manifest or weights that are gone hide what they held."""
    from pipeline.data.manifest import load_manifest

    sources, recipe, all_known = set[str](), evaluation.task.get("recipe"), evaluation.is_trained_here
    for _ in range(MOST_STAGES):
        if not recipe:
            return sources, False
        manifest = recipe.get("data", {}).get("manifest")
        try:
            sources |= {shard.source for shard in load_manifest(Path(manifest or "")).shards}
        except (ValueError, OSError):  # it is gone, or something else lies there now
            all_known = False
        if not recipe.get("init_weights"):
            break
        recipe = _recipe_of(Path(recipe["init_weights"]))
    return sources, all_known


def _recipe_of(weights: Path) -> dict[str, Any] | None:
    """The recipe by which native weights were trained, of their metadata, read without torch; None where there are none
    any more, or those of others."""
    newest = sorted(weights.glob("checkpoints/step_*/COMPLETE"))[-1:]
    file = newest[0].parent / WEIGHTS if newest else weights / WEIGHTS if weights.is_dir() else weights
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(size, MOST_HEADER_BYTES)))
        if "converted_from" in header["__metadata__"]:  # its recipe names towers, not what it was trained on
            return None
        found = json.loads(header["__metadata__"]["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def _looked_for(images: Mapping[SampleId, Path], training: Sequence[Path]) -> str:
    hashed, flat, unreadable = list[tuple[SampleId, int]](), 0, list[str]()
    for image, path in images.items():
        try:
            value = hash_of_file(path)
        except ValueError as error:
            unreadable.append(str(error))
            continue
        if value is None:
            flat += 1
        else:
            hashed.append((image, value))
    own = np.array([value for _, value in hashed], np.uint64)
    compared, hits = 0, dict[Any, list[str]]()
    for names, hashes in training_hashes(tuple(training)):
        compared += len(hashes)
        for e, t in near_pairs(own, hashes):
            hits.setdefault(hashed[e][0], []).append(str(names[t]))
    left = [f"{flat} too flat for a hash"] if flat else []
    left += [f"{len(unreadable)} not readable ({escape(unreadable[0])})"] if unreadable else []
    not_compared = f"; not compared: {', '.join(left)}" if left else ""
    if not compared:
        return "not checked: none of the training pictures has a hash"
    if not hits:
        return f"none of {len(hashed)} pictures is near one of {compared:,} training pictures{not_compared}"
    shown = "".join(
        f"<li>image {escape(str(image))}: {escape(', '.join(names[:3]))}{', ...' if len(names) > 3 else ''}</li>"
        for image, names in list(hits.items())[:SHOWN]
    )
    more = f"<li>and {len(hits) - SHOWN} more</li>" if len(hits) > SHOWN else ""
    return (
        f"<b>{len(hits)} of {len(hashed)} pictures</b> are near one of {compared:,} training pictures{not_compared}: "
        f"<ul>{shown}{more}</ul>"
    )


def training_hashes(paths: Iterable[Path]) -> Iterator[tuple[Sequence[Any], Hashes]]:
    """Names (through `str`) and hashes of all parquet files given or below the folders given, some rows at a time.

    Raises ValueError, naming the file, for one that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet

    for path in paths:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        files = [file for file in files if "phash" in _columns(file)]
        if not files:
            raise ValueError(f"--training-hashes {path}: no parquet with a column 'phash' there")
        for file in files:
            columns = [name for name in ("phash", "status", "url", "key") if name in _columns(file)]
            try:
                opened = pyarrow.parquet.ParquetFile(file)
                kind = opened.schema_arrow.field("phash").type
                if pa.types.is_null(kind):  # no picture of it has a hash
                    continue
                if not pa.types.is_integer(kind):
                    raise ValueError(f"--training-hashes {file}: column phash holds {kind}, expected whole numbers")
                for batch in opened.iter_batches(ROWS_AT_ONCE, columns=columns):
                    rows: Any = batch.filter(pc.is_valid(batch["phash"]))
                    if "status" in columns:
                        rows = rows.filter(pc.field("status") == "kept")
                    named = [rows[name].cast(pa.string()) for name in ("url", "key") if name in columns]
                    names: Any = pc.coalesce(*named, pa.array([file.name] * len(rows), pa.string()))
                    yield names, rows["phash"].to_numpy(zero_copy_only=False).astype(np.uint64)
            except (pa.ArrowException, KeyError) as error:  # KeyError: two columns of one name
                raise ValueError(f"--training-hashes {file}: not a readable parquet ({error})") from error


@cache
def _columns(file: Path) -> frozenset[str]:
    import pyarrow.parquet

    try:
        return frozenset(pyarrow.parquet.read_schema(file).names)
    except (OSError, ValueError) as error:
        raise ValueError(f"--training-hashes {file}: not a readable parquet ({error})") from error
