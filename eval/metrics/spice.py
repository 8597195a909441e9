"""SPICE by the user's own jar (the jar and its CoreNLP models are not shipped): each image's F score.

The jar's cache of parsed captions is switched off. It would serve one run only, and its library fails from Java 16 on.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.metrics.java_program import private_folder, run_java

HEAP = "-Xmx8G"
DEADLINE_S, DEADLINE_PER_IMAGE_S = 600.0, 1.0
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # named in the jar's manifest
LAST_JAVA = 14  # the jar writes its scores through a JavaScript engine that Java 15 removed
VERSION_S = 60


def check_spice(jar: Path) -> None:
    """Raise ValueError in one line when the jar, CoreNLP beside it, or a Java that is old enough is missing."""
    if not jar.is_file():
        raise ValueError(f"--spice {jar}: no such file; name spice-1.0.jar with its lib/ beside it, or leave it out")
    for name in MODELS:
        if not (jar.parent / "lib" / name).is_file():
            raise ValueError(
                f"--spice {jar}: no lib/{name} beside it; take it from Stanford CoreNLP 3.6.0, or leave --spice out"
            )
    with private_folder("spice") as folder:
        run_java("SPICE", ["-version"], folder, None, VERSION_S)
        version = re.search(
            r'version "(?:1\.)?(\d+)', (folder / "stderr").read_text(errors="replace", encoding="utf-8")
        )
    if version and int(version[1]) > LAST_JAVA:
        raise ValueError(
            f"--spice {jar}: it cannot write its scores under Java {version[1]}, the first on PATH; put Java 8 to "
            f"{LAST_JAVA} first, or leave --spice out"
        )


def spice_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], jar: Path, deadline_s: float | None = None
) -> NDArray[np.float64]:
    """F scores [N] as fractions, NaN where SPICE gives none. Raises ValueError in one line when the jar fails."""
    check_spice(jar)
    entries = [
        {"image_id": place, "test": prediction, "refs": list(captions)}
        for place, (prediction, captions) in enumerate(zip(predictions, references, strict=True))
    ]
    with private_folder("spice") as folder:
        (folder / "in.json").write_text(json.dumps(entries), encoding="utf-8")
        options = [HEAP, "-jar", str(jar.absolute()), str(folder / "in.json")]
        options += ["-out", str(folder / "out.json"), "-subset", "-silent"]
        run_java("SPICE", options, folder, None, deadline_s or DEADLINE_S + DEADLINE_PER_IMAGE_S * len(entries))
        try:
            answers = json.loads((folder / "out.json").read_text(encoding="utf-8"))
            by_image = {int(each["image_id"]): each["scores"]["All"]["f"] for each in answers}
            found = [np.nan if (score := by_image[place]) is None else float(score) for place in range(len(entries))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"SPICE: {jar} did not score every image ({type(error).__name__}: {error}); run again, or leave out "
                "--spice"
            ) from error
    return np.array(found)
