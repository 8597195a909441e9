"""Draws the scenes of each split of the drawn world; training and evaluation share no scene."""

from dataclasses import dataclass, field

import numpy as np

from data_prep.miniature.scenes import HeldOut, Scene, draw_scene

DRAWING_ORDER: dict[str, HeldOut] = {
    "coco_test": "never",
    "coco_val": "never",
    "flickr_test": "never",
    "flickr_val": "never",
    "vqa": "never",
    "nocaps_in-domain": "never",
    "nocaps_near-domain": "some",
    "nocaps_out-domain": "all",
    "coco_train": "never",
    "web": "never",
}
"""Split -> which held-out words its scenes have, in the order of drawing. Evaluation comes first, and training then
avoids its scenes."""
TRAINING = ("coco_train", "web")
MOST_TRIES = 10_000


def scene_identity(scene: Scene) -> tuple[object, ...]:
    """Two scenes with the same identity count as equal: background, looks, and places rounded to a tenth, in any
    order."""
    things = sorted((t.shape, t.colour, t.size, round(t.x, 1), round(t.y, 1)) for t in scene.things)
    return (scene.background, *things)


def scene_look(scene: Scene) -> tuple[object, ...]:
    """Background and things without their places: the least that captions can distinguish."""
    return (scene.background, *sorted((t.shape, t.colour, t.size) for t in scene.things))


@dataclass
class SceneDraw:
    """Draws scenes split by split, and remembers the scenes of the evaluation splits."""

    seed: int
    evaluation: set[tuple[object, ...]] = field(default_factory=set)

    def draw(self, split: str, number: int) -> list[Scene]:
        """`number` scenes for a split. Evaluation scenes differ in look within their split, so that the pictures of a
        gallery differ, and in identity from all others. Training scenes differ from every evaluation scene."""
        rng = np.random.default_rng((self.seed, list(DRAWING_ORDER).index(split)))
        scenes: list[Scene] = []
        looks: set[tuple[object, ...]] = set()
        tries = 0
        while len(scenes) < number:
            tries += 1
            if tries > MOST_TRIES + 20 * number:
                raise ValueError(f"{split}: the world does not have {number} different scenes; ask for fewer")
            scene = draw_scene(rng, held_out=DRAWING_ORDER[split])
            if scene_identity(scene) in self.evaluation:
                continue
            if split not in TRAINING:
                if scene_look(scene) in looks:
                    continue
                looks.add(scene_look(scene))
                self.evaluation.add(scene_identity(scene))
            scenes.append(scene)
        return scenes


def check_disjoint(scenes: dict[str, list[Scene]]) -> None:
    """Raises ValueError when a training split holds a scene of an evaluation split."""
    training = {scene_identity(scene) for split in TRAINING for scene in scenes.get(split, [])}
    for split, drawn in scenes.items():
        shared = 0 if split in TRAINING else sum(scene_identity(scene) in training for scene in drawn)
        if shared:
            raise ValueError(f"{split}: shares {shared} scenes with training")
