"""Scenes, captions and latents of the default model's training, on made-up sprites: no data needed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training import latent_scenes
from training.captions import canonical_caption, caption
from training.latent_scenes import LatentScenes
from training.linear_codec import LinearCodec
from training.objects import OBJECTS
from training.scenes import (
    BACKGROUNDS,
    CANVAS,
    PAIRS,
    SINGLES,
    SPRITE_SIZES,
    Scene,
    Sprites,
    is_heldout,
    place_pair,
    render,
    sample_scene,
)
from training.text_encoders import PLACES, THINGS, targets


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    """A random picture, half transparent, for every object and size."""
    rng = np.random.default_rng(0)
    pictures = {}
    for name in OBJECTS:
        for size in SPRITE_SIZES.values():
            picture = rng.random((size, size, 4), dtype=np.float32)
            picture[..., :3] *= 255 * picture[..., 3:]
            pictures[name, size] = picture
    return Sprites(pictures)


def test_training_never_sees_what_is_held_out() -> None:
    for table in (PAIRS, SINGLES):
        assert not set(table["train"]) & set(table["heldout"])
        held_out = len(table["heldout"]) / (len(table["train"]) + len(table["heldout"]))
        assert 0.08 < held_out < 0.13
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = sample_scene(rng, "train")
        names = [placed.name for placed in scene.objects]
        assert not is_heldout(*(names if scene.relation else [names[0], scene.background]))


def test_a_pair_is_held_out_in_both_orders() -> None:
    assert {(b, a) for a, b in PAIRS["heldout"]} == set(PAIRS["heldout"])


@pytest.mark.parametrize(
    ("relation", "first", "second"),
    [
        ("left of", "left", "right"),
        ("right of", "right", "left"),
        ("above", "top", "bottom"),
        ("below", "bottom", "top"),
    ],
)
def test_relation_places_and_read_outs_agree(relation: str, first: str, second: str) -> None:
    scene = place_pair("zebra", "cactus", relation, "blue", np.random.default_rng(0))
    (left, top), (other_left, other_top) = ((o.left, o.top) for o in scene.objects)
    seen = {
        "left": left < other_left,
        "right": left > other_left,
        "top": top < other_top,
        "bottom": top > other_top,
    }
    assert seen[first]
    assert not seen[second]
    answers = targets(scene)
    assert THINGS[answers["first"]] == "zebra"
    assert PLACES[answers["first place"]] == first
    assert THINGS[answers["second"]] == "cactus"
    assert PLACES[answers["second place"]] == second


def test_the_empty_prompt_means_nothing() -> None:
    assert set(targets(None).values()) == {0}


def test_captions_name_their_objects_in_order_and_every_background_but_white() -> None:
    rng = np.random.default_rng(2)
    for _ in range(400):
        scene = sample_scene(rng)
        text = caption(scene, rng).lower().replace("grey", "gray")
        places = []
        for placed in scene.objects:
            words = (placed.name, *OBJECTS[placed.name].synonyms)
            places.append(max(text.find(word) for word in words))
        assert min(places) >= 0, text
        assert scene.background in text or scene.background == "white", text


def test_canonical_captions_read_as_one_would_say_them() -> None:
    scene = place_pair("apple", "fire truck", "left of", "orange", np.random.default_rng(0))
    assert canonical_caption(scene) == "an apple to the left of a fire truck on an orange background"


def test_pasted_latents_are_those_of_the_rendered_scene(
    sprites: Sprites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(12)]
    pixels = torch.from_numpy(np.stack([render(scene, sprites) for scene in scenes]))
    codec = LinearCodec.fit(pixels)
    codec.save(tmp_path / "codec.safetensors")
    monkeypatch.setattr(latent_scenes, "load_sprites", lambda _: sprites)
    pasted = LatentScenes(tmp_path, tmp_path / "codec.safetensors")
    torch.testing.assert_close(torch.stack([pasted.latents(s) for s in scenes]), codec.encode(pixels))


def test_an_empty_scene_is_its_background(sprites: Sprites) -> None:
    for name, colour in BACKGROUNDS.items():
        assert (render(Scene((), None, name), sprites) == np.uint8(colour)).all()
        assert render(Scene((), None, name), sprites).shape == (CANVAS, CANVAS, 3)
