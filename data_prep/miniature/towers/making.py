"""Makes the towers one after another, each from its settings, and skips finished ones."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.miniature.towers.bert import train_bert
from data_prep.miniature.towers.blip import blip_processor, read_karpathy, train_blip
from data_prep.miniature.towers.clip import clip_processor, train_clip
from data_prep.miniature.towers.folders import is_finished, settings_digest, write_folder
from data_prep.miniature.towers.opt import train_opt
from data_prep.miniature.towers.settings import BERT, BLIP, CLIP, OPT, T5
from data_prep.miniature.towers.t5 import train_t5
from data_prep.miniature.towers.vision import save_timm_folder
from data_prep.miniature.towers.vocabulary import bert_tokenizer, opt_tokenizer, t5_tokenizer
from pipeline.files import sha256_of


@dataclass(frozen=True)
class Order:
    """What to make and from what: `world` has the "COCO" split, `steps_scale` shortens training (for tests)."""

    world: Path
    output: Path
    seed: int
    steps_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.steps_scale <= 100:
            raise ValueError(f"--steps-scale {self.steps_scale}: must be above 0 and at most 100")

    @property
    def annotations(self) -> Path:
        return self.world / "coco" / "dataset_coco.json"

    def scaled(self, settings: Any) -> Any:
        """The settings with a scaled number of steps, and of drawn groups if there are any."""
        counts = {name: getattr(settings, name) for name in ("steps", "groups") if hasattr(settings, name)}
        floors = {"steps": 2, "groups": 64}
        return replace(
            settings, **{name: max(floors[name], round(count * self.steps_scale)) for name, count in counts.items()}
        )


def make(name: str, order: Order) -> bool:
    """Make one tower in `order.output / name`; False if it was finished. Raises ValueError when an input is missing."""
    settings, made_from = _recipe(name, order)
    digest = settings_digest(name, settings, order.seed, made_from)
    folder = order.output / name
    if is_finished(folder, digest):
        print(f"{name}: is already in {folder}", flush=True)
        return False
    started = time.monotonic()
    write_folder(folder, digest, settings, _saver(name, settings, order))
    print(f"{name}: made in {time.monotonic() - started:.0f} s: {folder}", flush=True)
    return True


def _recipe(name: str, order: Order) -> tuple[Any, dict[str, str]]:
    """The settings of a tower, and the digests of what it is made from."""
    all_settings = {"clip": CLIP, "vision": CLIP, "blip": BLIP, "t5": T5, "opt": OPT, "bert": BERT}
    settings = order.scaled(all_settings[name])
    made_from: dict[str, str] = {}
    if name in ("vision", "blip"):
        made_from["clip"] = settings_digest("clip", order.scaled(CLIP), order.seed, {})
    if name == "blip":
        if not order.annotations.is_file():
            raise ValueError(
                f"--world {order.world}: has no coco/dataset_coco.json; run data_prep.miniature.world first"
            )
        made_from["annotations"] = sha256_of(order.annotations)
    return settings, made_from


def _saver(name: str, settings: Any, order: Order) -> Callable[[Path], None]:
    """The function that trains a tower and saves it into a folder."""

    def save(folder: Path) -> None:
        if name == "clip":
            _save(folder, train_clip(settings, order.seed), clip_processor(settings))
        elif name == "vision":
            save_timm_folder(_clip(order), order.seed, folder)
        elif name == "blip":
            clip, tokenizer = _clip(order), bert_tokenizer()
            tokenizer.add_tokens(["[DEC]"], special_tokens=True)
            size_px = clip.config.vision_config.image_size
            pictures = read_karpathy(order.annotations, order.world / "coco" / "images", size_px)
            _save(
                folder, train_blip(settings, clip, pictures, tokenizer, order.seed), blip_processor(size_px, tokenizer)
            )
        elif name == "t5":
            _save(folder, train_t5(settings, order.seed), t5_tokenizer())
        elif name == "opt":
            _save(folder, train_opt(settings, order.seed), opt_tokenizer())
        else:
            tokenizer = bert_tokenizer()
            _save(folder, train_bert(settings, tokenizer, order.seed), tokenizer)

    return save


def _clip(order: Order) -> Any:
    from transformers import CLIPModel

    make("clip", order)
    return CLIPModel.from_pretrained(order.output / "clip", trust_remote_code=False).eval()


def _save(folder: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)
