"""Writes a folder of photographs with a CSV and a Karpathy JSON, as an example of own pictures.

The photographs are part of the packages scikit-image and scikit-learn.
"""

import csv
import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from pipeline.command_line import Parser

CAPTIONS = {
    "skimage.data": {
        "astronaut.png": "an astronaut in an orange suit in front of a flag",
        "camera.png": "a man with a camera on a tripod",
        "chelsea.png": "a close photo of a tabby cat",
        "coffee.png": "a cup of coffee on a saucer with a spoon",
        "coins.png": "IMG_0042.png",
        "rocket.jpg": "a rocket on its launch pad at night",
        "motorcycle_left.png": "a motorcycle in a workshop",
        "hubble_deep_field.jpg": "galaxies in deep space",
        "horse.png": "horse",
        "moon.png": "the surface of the moon",
        "retina.jpg": "a retina",
        "ihc.png": "tissue under a microscope",
    },
    "sklearn.datasets.images": {
        "china.jpg": "a chinese temple behind trees",
        "flower.jpg": "a red flower with a yellow heart",
    },
}


def write_pictures(folder: Path) -> Path:
    """Copy the photographs, and write `pictures.csv` (file, caption) and `dataset_coco.json` (split test). Returns the
    CSV."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file", "caption")]
    for package, captions in CAPTIONS.items():
        for name, caption in captions.items():
            shutil.copyfile(str(files(package) / name), folder / name)
            rows.append((name, caption))
    table = folder / "pictures.csv"
    images = [
        {"cocoid": number, "filename": name, "split": "test", "sentences": [{"raw": caption}]}
        for number, (name, caption) in enumerate(rows[1:])
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "own", "images": images}), encoding="utf-8")
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return table


def main() -> int:
    parser = Parser(prog="python -m data_prep.miniature.own_pictures", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    arguments = parser.parse_args()
    try:
        print(write_pictures(arguments.output))
    except ModuleNotFoundError as error:
        print(f"error: {error.name}: is not installed, but contains the photographs; run make setup", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
