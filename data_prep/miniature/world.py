"""Draws the miniature world: web pictures with alt-texts, and COCO, Flickr30K, VQAv2 and NoCaps in their formats.

`world.json`, with the settings, is written last: a second run with the same settings finds it and draws nothing. What a
killed run left is drawn again. `truth.parquet` says what each picture shows; only reports and tests read it.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.command_line import Parser, finish, print_settings
from pipeline.files import replace_file

FORMAT = "blip2-miniature-world/2"
DATASETS = ("web", "coco", "flickr30k", "vqav2", "nocaps")


@dataclass(frozen=True)
class WorldSettings:
    """The settings of a world. `eval_images` is the size of the COCO test, Flickr30K test and VQA splits."""

    seed: int
    web_images: int
    coco_images: int
    eval_images: int
    base_url: str

    def __post_init__(self) -> None:
        for name in ("web_images", "coco_images", "eval_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if not self.base_url.startswith("http://") or self.base_url.endswith("/"):
            raise ValueError(f"--base-url {self.base_url}: must be http://HOST:PORT without a slash at the end")

    def split_sizes(self) -> dict[str, int]:
        part = {name: max(1, round(self.eval_images * share)) for name, share in SPLIT_SHARES.items()}
        return {**part, "coco_train": self.coco_images, "web": self.web_images}


SPLIT_SHARES = {
    "coco_test": 1.0,
    "coco_val": 0.4,
    "flickr_test": 1.0,
    "flickr_val": 0.2,
    "vqa": 1.0,
    "nocaps_in-domain": 0.32,
    "nocaps_near-domain": 0.32,
    "nocaps_out-domain": 0.32,
}
"""Evaluation split -> its size, divided by `eval_images`."""


def make_world(folder: Path, settings: WorldSettings) -> bool:
    """Draw the world into `folder`, unless it is there. Returns whether anything was drawn."""
    from data_prep.miniature import datasets
    from data_prep.miniature.pictures import write_pictures
    from data_prep.miniature.splits import DRAWING_ORDER, SceneDraw, check_disjoint

    if _is_complete(folder, settings):
        return False
    _clear(folder)
    drawing = SceneDraw(settings.seed)
    sizes = settings.split_sizes()
    scenes = {split: drawing.draw(split, sizes[split]) for split in DRAWING_ORDER}
    check_disjoint(scenes)
    pictures, truth = datasets.build_web(folder, scenes, settings.seed, settings.base_url)
    for build in (datasets.build_coco, datasets.build_flickr, datasets.build_vqa, datasets.build_nocaps):
        more_pictures, more_truth = build(folder, scenes, settings.seed)
        pictures += more_pictures
        truth += more_truth
    write_pictures(pictures)
    datasets.write_truth(folder / "truth.parquet", truth)
    content = {"format": FORMAT, "settings": asdict(settings), "seed": settings.seed, "splits": sizes}
    replace_file(folder / "world.json", json.dumps(content, indent=1) + "\n")
    (folder / "world.unfinished").unlink()
    return True


def _is_complete(folder: Path, settings: WorldSettings) -> bool:
    """Whether the folder has a finished world with these settings."""
    try:
        content = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return bool(content.get("format") == FORMAT and content.get("settings") == asdict(settings))


def _clear(folder: Path) -> None:
    """Remove an older or unfinished world. Raises ValueError on a folder with other content."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file; name a folder")
    marker = folder / "world.unfinished"
    if folder.is_dir() and any(folder.iterdir()) and not (marker.exists() or (folder / "world.json").exists()):
        raise ValueError(f"--output {folder}: holds something that is not a miniature world; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    (folder / "world.json").unlink(missing_ok=True)
    for name in DATASETS:
        shutil.rmtree(folder / name, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.miniature.world", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder of the world")
    parser.add_argument(
        "--base-url",
        metavar="URL",
        default="http://127.0.0.1:8765",
        help="where data_prep.miniature.server will serve the web (default: %(default)s)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="seed of all draws (default: %(default)s)")
    sizes = parser.add_argument_group("sizes")
    for name, default, text in (
        ("web-images", 3000, "rows of the two URL tables together"),
        ("coco-images", 2000, "training images of the small clean COCO"),
        ("eval-images", 250, "images of each of the COCO test, Flickr30K test and VQA splits"),
    ):
        sizes.add_argument(f"--{name}", metavar="N", type=int, default=default, help=f"{text} (default: %(default)s)")
    options = parser.parse_args(arguments)
    print_settings(options)

    def work() -> int:
        settings = WorldSettings(
            options.seed, options.web_images, options.coco_images, options.eval_images, options.base_url
        )
        started = time.monotonic()
        drawn = make_world(options.output, settings)
        print(
            f"drawn in {time.monotonic() - started:.1f} s"
            if drawn
            else "the world is already complete; nothing was drawn"
        )
        print(options.output / "world.json")
        return 0

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
