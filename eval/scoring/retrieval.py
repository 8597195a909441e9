"""Retrieval: R@1/5/10 of both directions from score matrices, by ITC alone and after the ITM rerank, and by chance.

`tr_mean` and `ir_mean` are the means of a direction's three recalls, `mean_recall` is the mean of all six.
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.metrics.bootstrap import Floats, sums_by_cluster
from eval.metrics.recall import RECALL_AT, Integers, Ranks, chance_recall, rank_queries
from eval.scoring.rows import DECIMALS, metric_row
from eval.scoring.tables import Scored, Table, means_table

TEXT_RETRIEVAL, IMAGE_RETRIEVAL = "tr", "ir"  # texts for an image; images for a text
MEANS = ("tr_mean", "ir_mean", "mean_recall")
REAL_NUMBERS = "iuf"  # numpy's kinds of types: signed, unsigned, floating


def score_retrieval(path: Path) -> Scored:
    """`itc` [images, texts]; `itm` the same, NaN where not scored; `text_image` [texts] = row of a text's image.

    `k_test` (optional) says how many candidates a query has; without it they are all that have an ITM score.
    """
    arrays = _read(path)
    itc, text_image = arrays["itc"], arrays["text_image"].astype(np.int64)
    images, texts = itc.shape
    positives: dict[str, list[Integers]] = {
        TEXT_RETRIEVAL: [np.flatnonzero(text_image == image) for image in range(images)],
        IMAGE_RETRIEVAL: [np.array([image]) for image in text_image],
    }
    clusters = {TEXT_RETRIEVAL: np.arange(images), IMAGE_RETRIEVAL: text_image}
    k = int(arrays["k_test"].flat[0]) if "k_test" in arrays else None
    stages: dict[str, NDArray[Any] | None] = {"ret/itc": None}
    if "itm" in arrays:
        stages[f"ret/k{k}/itm+itc" if k else "ret/itm+itc"] = arrays["itm"]
    tables: list[Table] = []
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = [{"image": image} for image in range(images)]
    samples += [{"text": text} for text in range(texts)]
    for protocol, itm in stages.items():
        hits: dict[str, Floats] = {}
        for direction, first_sample in ((TEXT_RETRIEVAL, 0), (IMAGE_RETRIEVAL, images)):
            oriented = itc if direction == TEXT_RETRIEVAL else itc.T
            oriented_itm = None if itm is None else itm if direction == TEXT_RETRIEVAL else itm.T
            try:
                ranks = rank_queries(oriented, positives[direction], oriented_itm, k)
            except ValueError as error:
                raise ValueError(f"{path}: {direction}: {error}") from error
            hits[direction] = 100 * (ranks.stable[:, None] < np.array(RECALL_AT)).astype(np.float64)
            keys = [(f"{direction}_at_{at}", protocol, "overall") for at in RECALL_AT]
            counts = np.ones_like(hits[direction])
            tables.append(means_table(keys, hits[direction], counts, clusters[direction], DECIMALS))
            rows += _tie_rows(protocol, direction, ranks)
            for query, (rank, first) in enumerate(zip(ranks.stable, ranks.first, strict=True)):
                samples[first_sample + query][protocol] = {"rank": int(rank), "first": first.tolist()}
        tables.append(_means(protocol, hits, clusters))
    for direction, gallery in ((TEXT_RETRIEVAL, texts), (IMAGE_RETRIEVAL, images)):
        for at, value in chance_recall(positives[direction], gallery).items():
            rows.append(metric_row(f"{direction}_at_{at}", "ret/chance", "overall", value, value, value))
    return Scored("retrieval", images, tables, samples, rows, {"texts": texts})


def _means(protocol: str, hits: dict[str, Floats], clusters: dict[str, Integers]) -> Table:
    """The means of R@1, 5 and 10: of each direction, and of both. `hits` are of queries, in percent."""
    directions = (TEXT_RETRIEVAL, IMAGE_RETRIEVAL)
    parts = [np.column_stack([hits[each].mean(axis=1), np.ones(len(hits[each]))]) for each in directions]
    sums = np.hstack([sums_by_cluster(p, clusters[each]) for p, each in zip(parts, directions, strict=True)])

    def means(totals: Floats) -> Floats:
        of_direction = totals[..., 0::2] / totals[..., 1::2]
        return np.concatenate([of_direction, of_direction.mean(axis=-1, keepdims=True)], axis=-1)

    return Table([(name, protocol, "overall") for name in MEANS], sums, means, DECIMALS)


def _tie_rows(protocol: str, direction: str, ranks: Ranks) -> list[dict[str, Any]]:
    """Rows with the range of R@K over all orders of equal scores; none when no tie can move it."""
    if (ranks.optimistic == ranks.pessimistic).all():
        return []
    recalls = [
        [100 * float((each < at).mean()) for each in (ranks.stable, ranks.pessimistic, ranks.optimistic)]
        for at in RECALL_AT
    ]
    return [
        metric_row(f"{direction}_at_{at}", f"{protocol}/any-tie-order", "overall", *found)
        for at, found in zip(RECALL_AT, recalls, strict=True)
    ]


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The file's arrays; those that are used hold real numbers."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: np.asarray(content[name]) for name in content.files}
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:  # TypeError: of a .npy, a bare array
        raise ValueError(f"{path}: not a readable .npz ({error}); name a file of np.savez") from error
    for name in ("itc", "text_image"):
        if name not in arrays:
            raise ValueError(f"{path}: no array {name!r} in it, only {sorted(arrays)}; add it")
    for name in ("itc", "text_image", "itm", "k_test"):
        if name in arrays and arrays[name].dtype.kind not in REAL_NUMBERS:
            raise ValueError(f"{path}: {name} holds {arrays[name].dtype}; save it as real numbers")
    return arrays


def _read(path: Path) -> dict[str, NDArray[Any]]:
    arrays = _load(path)
    itc, text_image = arrays["itc"], arrays["text_image"]
    if itc.ndim != 2 or text_image.shape != itc.shape[1:]:
        raise ValueError(
            f"{path}: itc {itc.shape} and text_image {text_image.shape} do not fit; need [images, texts] and [texts]"
        )
    if not itc.size:
        raise ValueError(f"{path}: itc {itc.shape} has no scores; expected [images, texts]")
    broken = np.flatnonzero(text_image != np.floor(text_image))  # NaN is not equal to itself
    if len(broken):
        raise ValueError(
            f"{path}: text_image[{broken[0]}] is {text_image[broken[0]]}, not a whole number; give the row of its image"
        )
    for name in ("itc", "itm"):
        if np.isinf(arrays.get(name, itc)).any():
            raise ValueError(f"{path}: {name} has infinite scores; replace them by finite ones")
    k = arrays.get("k_test", np.array(1))
    if k.size != 1 or k.flat[0] < 1 or not float(k.flat[0]).is_integer():
        raise ValueError(f"{path}: k_test {k.tolist()}, expected one whole number, at least 1")
    if "itm" in arrays and arrays["itm"].shape != itc.shape:
        raise ValueError(f"{path}: itm {arrays['itm'].shape}, expected {itc.shape} as itc")
    if "itm" in arrays and np.isnan(arrays["itm"]).all():
        raise ValueError(f"{path}: itm has no score at all (NaN everywhere); leave it out to score itc alone")
    outside = np.flatnonzero((text_image < 0) | (text_image >= len(itc)))
    if len(outside):
        raise ValueError(
            f"{path}: text_image[{outside[0]}] is {text_image[outside[0]]}, outside 0..{len(itc) - 1}; give the row of "
            "its image"
        )
    return arrays


def check_same_gallery(path: Path, other: Path) -> None:
    """Raise ValueError when two score files have different images, texts or protocols."""
    mine, others = _read(path), _read(other)
    for name in ("text_image", "image_ids"):
        if name in mine and name in others and not np.array_equal(mine[name], others[name]):
            raise ValueError(f"--against {other}: its {name} differs from that of {path}; compare runs on one gallery")
    if ("itm" in mine) != ("itm" in others) or mine.get("k_test") != others.get("k_test"):
        raise ValueError(
            f"--against {other}: its rerank (itm, k_test) differs from that of {path}; compare runs of one protocol"
        )
