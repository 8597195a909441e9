"""Scenes and their pictures: domains, distances, and what the pixels show."""

import numpy as np
import pytest

from data_prep.miniature.captions import holds
from data_prep.miniature.rendering import RGB, render
from data_prep.miniature.scenes import (
    COMMON_COLOURS,
    HELD_OUT,
    SHAPES,
    Scene,
    Thing,
    draw_scene,
    scene_from_json,
    scene_to_json,
)


def novel(thing: Thing) -> bool:
    return bool({thing.shape, thing.colour} & HELD_OUT)


def test_domains_hold_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        assert not any(novel(thing) for thing in draw_scene(rng, held_out="never").things)
        assert all(novel(thing) for thing in draw_scene(rng, held_out="all").things)
        mixed = [novel(thing) for thing in draw_scene(rng, held_out="some").things]
        assert any(mixed) and not all(mixed)


def test_of_two_things_exactly_one_relation_holds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = draw_scene(rng, held_out="never")
        if len(scene.things) == 2:
            said = [relation for relation in ("left", "right", "above", "below") if holds(relation, *scene.things)]
            assert len(said) == 1


def test_a_scene_survives_json() -> None:
    scene = draw_scene(np.random.default_rng(3), held_out="some")
    assert scene_from_json(scene_to_json(scene)) == scene


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="held_out 'out'"):
        draw_scene(np.random.default_rng(0), held_out="out")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("width_px", "height_px"), [(80, 80), (200, 130)])
def test_pixels_show_the_colour_where_the_thing_stands(shape: str, width_px: int, height_px: int) -> None:
    rng = np.random.default_rng(0)
    for colour in COMMON_COLOURS:
        picture = render(Scene((Thing(shape, colour, "big", 0.3, 0.5),), "black"), width_px, height_px, rng)
        assert picture.shape == (height_px, width_px, 3) and picture.dtype == np.uint8
        bright = picture.astype(float).max(axis=2) > 110
        columns = np.nonzero(bright)[1]
        assert abs(columns.mean() / width_px - 0.3) < 0.1
        assert np.abs(picture[bright].mean(axis=0) - RGB[colour]).max() < 45


def test_the_same_seed_draws_the_same_picture() -> None:
    scene = draw_scene(np.random.default_rng(5), held_out="all")
    first, second = (render(scene, 64, 64, np.random.default_rng(9)) for _ in range(2))
    assert (first == second).all()


def test_a_picture_too_small_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="picture of 8 x 80 px"):
        render(Scene((), "grey"), 8, 80, np.random.default_rng(0))
