"""METEOR 1.5 (English, normalised) as in pycocoevalcap: its jar aligns the words, the score is computed here.

Shapes: N images, 23 statistics an image. The statistics of a corpus are the sums of its images'.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.metrics.java_program import private_folder, run_java

NUM_STATISTICS = 23
LENGTHS, CHUNKS, WORDS = slice(0, 2), 20, slice(21, 23)  # places among them
HEAP = "-Xmx2G"
DEADLINE_S, DEADLINE_PER_IMAGE_S = 300.0, 0.05  # starting takes 7 s of a free core, 5,000 images 14 s more
# METEOR's parameters for English (Denkowski and Lavie 2014): exact, stem, synonym and paraphrase matches.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
MODULE_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
SEPARATOR = "|||"

Floats = NDArray[np.float64]


def meteor_statistics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    jar: Path | None = None,
    deadline_s: float | None = None,
) -> Floats:
    """The jar's statistics [N, 23] of tokenised captions. Raises ValueError in one line when Java fails."""
    lines = [
        f"SCORE {SEPARATOR} {f' {SEPARATOR} '.join(map(_clean, captions))} {SEPARATOR} {_clean(prediction)}\n"
        for prediction, captions in zip(predictions, references, strict=True)
    ]
    with private_folder("meteor") as folder:
        (folder / "stdin").write_text("".join(lines), encoding="utf-8", newline="\n")
        options = [HEAP, "-jar", str((jar or packaged_jar()).absolute()), "-", "-", "-stdio", "-l", "en", "-norm"]
        deadline = DEADLINE_S + DEADLINE_PER_IMAGE_S * len(lines) if deadline_s is None else deadline_s
        answers = (
            run_java("METEOR", options, folder, folder / "stdin", deadline)
            .read_text(errors="replace", encoding="utf-8")
            .splitlines()
        )
    if len(answers) != len(lines):
        raise ValueError(f"METEOR: java answered {len(answers)} lines for {len(lines)} captions; run again")
    found = [answer.split() for answer in answers]
    strange = next((row for row, parts in enumerate(found) if not _are_statistics(parts)), None)
    if strange is not None:
        raise ValueError(f"METEOR: java answered {answers[strange][:80]!r} for image row {strange}; run again")
    statistics = np.array(found, dtype=np.float64)
    whole = (statistics[:, CHUNKS] == 1) & (statistics[:, WORDS] == statistics[:, LENGTHS]).all(axis=1)
    statistics[whole, CHUNKS] = 0  # the jar's own sums count no chunk for a caption that equals its reference
    return statistics


def _are_statistics(parts: Sequence[str]) -> bool:
    try:
        return len(parts) == NUM_STATISTICS and all(math.isfinite(float(part)) for part in parts)
    except ValueError:
        return False


def meteor(statistics: Floats) -> Floats:
    """The score [...] of statistics [..., 23], of an image or summed over a corpus."""
    lengths, function_words = statistics[..., LENGTHS], statistics[..., 2:4]  # of prediction and reference
    matches = statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2)  # module, content or function, side
    kinds = np.array([DELTA, 1 - DELTA])
    matched = np.einsum("...mks,m,k->...s", matches, MODULE_WEIGHTS, kinds)
    total = DELTA * (lengths - function_words) + (1 - DELTA) * function_words
    chunks, words = statistics[..., CHUNKS], statistics[..., WORDS]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / total, -1, 0)
        f_mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        fragmentation = chunks / words.mean(axis=-1)
        score: Floats = f_mean * (1 - GAMMA * fragmentation**BETA)
    return np.nan_to_num(score)


def packaged_jar() -> Path:
    """The jar that pycocoevalcap ships. Raises ValueError when the package is not installed."""
    from importlib.util import find_spec

    spec = find_spec("pycocoevalcap")
    folders = list(spec.submodule_search_locations or []) if spec else []
    jar = Path(folders[0]) / "meteor" / "meteor-1.5.jar" if folders else None
    if jar is None or not jar.is_file():
        raise ValueError("METEOR: no meteor-1.5.jar; install pycocoevalcap, or leave out --meteor")
    return jar


def _clean(caption: str) -> str:
    """One line without the separator, as pycocoevalcap cleans a prediction."""
    return " ".join(caption.split("\n")).replace(SEPARATOR, "").replace("  ", " ")
