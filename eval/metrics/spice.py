"""SPICE of a jar that the user has (it and its CoreNLP models are not shipped): each image's F score."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.metrics.java_program import private_folder, run_java

HEAP = "-Xmx8G"
DEADLINE_S, DEADLINE_PER_IMAGE_S = 600.0, 1.0


def check_jar(jar: Path) -> None:
    """Raise ValueError in one line when there is no such file."""
    if not jar.is_file():
        raise ValueError(f"--spice {jar}: no such file; name spice-1.0.jar with its lib/ beside it, or leave SPICE out")


def spice_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], jar: Path, deadline_s: float | None = None
) -> NDArray[np.float64]:
    """F scores [N] as fractions, NaN where SPICE gives none. Raises ValueError in one line when the step fails."""
    check_jar(jar)
    entries = [
        {"image_id": place, "test": prediction, "refs": list(captions)}
        for place, (prediction, captions) in enumerate(zip(predictions, references, strict=True))
    ]
    with private_folder("spice") as folder:
        (folder / "in.json").write_text(json.dumps(entries))
        (folder / "cache").mkdir()
        options = [HEAP, "-jar", str(jar.absolute()), str(folder / "in.json"), "-cache", str(folder / "cache")]
        options += ["-out", str(folder / "out.json"), "-subset", "-silent"]
        run_java("SPICE", options, folder, None, deadline_s or DEADLINE_S + DEADLINE_PER_IMAGE_S * len(entries))
        try:
            answers = json.loads((folder / "out.json").read_text())
            by_image = {int(each["image_id"]): each["scores"]["All"]["f"] for each in answers}
            found = [np.nan if (score := by_image[place]) is None else float(score) for place in range(len(entries))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"SPICE: {jar} left no scores of every image ({type(error).__name__}: {error})") from error
    return np.array(found)
