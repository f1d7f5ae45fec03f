"""The recipe's words: nouns, captions, what they say, and which scenes training never sees."""

from collections import Counter

import numpy as np
import pytest

from training.canvases import CANVASES, parse_levels
from training.captions import caption, plain_caption
from training.grounds import Ground
from training.meaning import EACH, WHOLE, answers
from training.nouns import article, is_counted, plural
from training.phrases import RELATIONS
from training.scenes import ARRANGEMENTS, Item, Scene, compose, in_training, is_heldout, sample_scene
from training.strangers import HELDOUT, STRANGERS, TRAINED, sample_stranger
from training.vocabulary import OBJECTS, RECOLOURABLE

SIZES = [canvas for level in CANVASES.values() for canvas in level]


def test_plurals_and_articles_are_english() -> None:
    words = ("zebra", "bunch of grapes", "field mouse", "strawberry", "person in bed", "wolf", "bus", "toy")
    several = [
        "zebras",
        "bunches of grapes",
        "field mice",
        "strawberries",
        "people in bed",
        "wolves",
        "buses",
    ]
    assert [plural(word) for word in words] == [*several, "toys"]
    assert [article(w) for w in ("owl", "unicorn", "hourglass", "umbrella", "grapes", "rice")] == [
        *("an ", "a ", "an ", "an "),
        *("", ""),
    ]
    assert is_counted("octopus")
    assert not is_counted("scissors")


def test_every_word_means_one_object() -> None:
    words = [word for thing in OBJECTS.values() for word in (thing.name, *thing.synonyms)]
    assert len(words) == len(set(words))
    assert len(OBJECTS) >= 200
    assert set(RECOLOURABLE) <= set(OBJECTS)


@pytest.mark.parametrize("canvas", SIZES)
def test_things_stand_on_the_grid_inside_the_canvas_and_apart(canvas: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for index in range(200):
        scene = sample_scene(rng, canvas, usual=index % 2)
        covered = np.zeros(canvas, int)
        for item, boxes in zip(scene.items, scene.boxes, strict=True):
            assert len(boxes) == item.count
            for box in boxes:
                assert box.left % 16 == box.top % 16 == 0
                assert box.left + box.side <= canvas[1]
                assert box.top + box.side <= canvas[0]
                covered[box.top : box.top + box.side, box.left : box.left + box.side] += 1
        assert covered.max(initial=0) <= 1, plain_caption(scene)


@pytest.mark.parametrize("arrangement", ["alone", "two", "beside", "between", "row", "three"])
def test_without_chance_things_stand_where_they_mostly_do(arrangement: str) -> None:
    items = tuple(Item(name) for name in ("zebra", "tent", "whale")[: ARRANGEMENTS[arrangement]])
    usual = compose(items, arrangement, Ground("grass"), (128, 192), None).boxes
    rng = np.random.default_rng(0)
    drawn = Counter(compose(items, arrangement, Ground("grass"), (128, 192), rng).boxes for _ in range(300))
    assert len(drawn) > 1
    assert drawn[usual] >= 0.5 * drawn.most_common(1)[0][1]


def test_training_never_sees_what_is_held_out() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng, (128, 128))
        assert in_training(scene.items, scene.arrangement, scene.ground)
        for item in scene.items:
            assert not is_heldout(item.name, f"on {scene.ground.kind}")
        other = sample_scene(rng, (128, 128), "heldout")
        assert not in_training(other.items, other.arrangement, other.ground)


def test_the_plainest_caption_says_everything() -> None:
    rng = np.random.default_rng(0)
    whale, mice = Item("whale", colour="pink", size="small"), Item("mouse", count=3)
    scene = compose((whale, mice), "left of", Ground("orange"), (128, 128), rng)
    text = "a small pink whale to the left of three mice"
    assert plain_caption(scene) == f"{text} on an orange background"
    assert plain_caption(scene, says_ground=False) == text


def test_pictures_captions_have_no_paraphrase_that_only_the_encoders_learn() -> None:
    rng = np.random.default_rng(0)
    scene = compose((Item("zebra"), Item("tent")), "above", Ground("grass"), (128, 128), rng)
    texts = {caption(scene, rng).text.lower() for _ in range(300)}
    every = {caption(scene, rng, every=True).text.lower() for _ in range(300)}
    assert not any("floating above" in text for text in texts)
    assert any("floating above" in text for text in every)
    assert all(phrases.encoders_only for phrases in RELATIONS.values())


def test_strangers_are_words_of_no_object_and_some_are_held_out() -> None:
    known = {word for thing in OBJECTS.values() for word in (thing.name, *thing.synonyms)}
    assert not known & set(STRANGERS)
    rng = np.random.default_rng(0)
    said = " ".join(sample_stranger(rng) for _ in range(3000)).split()
    assert "hovercraft" in said
    assert not {word for word in HELDOUT if word in said and not any(word in t.split() for t in TRAINED)}


def test_a_caption_that_names_a_stranger_says_no_more_than_the_scene() -> None:
    rng = np.random.default_rng(0)
    scene = Scene((), "empty", Ground("grass"), (128, 128), ())
    said = [caption(scene, rng) for _ in range(100)]
    assert len({c.text for c in said}) > 40
    assert not any(answers(scene, c)[1].any() for c in said)


def test_answers_are_what_the_caption_says_and_no_more() -> None:
    rng = np.random.default_rng(0)
    scene = compose((Item("zebra", count=2), Item("tent")), "above", Ground("grass"), (128, 128), rng)
    for _ in range(50):
        said = caption(scene, rng)
        whole, each = answers(scene, said)
        assert WHOLE["ground"][whole[1]] == ("grass" if said.says_ground else "unsaid")
        if not said.says_items:
            assert not each.any()
            continue
        read = [classes[index] for classes, index in zip(EACH.values(), each[0], strict=True)]
        spot = "top" if said.arrangement == "above" else "somewhere"
        assert read == ["zebra", "unsaid", "2", "normal", spot]
        assert not each[2].any()
    assert not answers(None, None)[0].any()


def test_levels_are_shares_of_known_sizes() -> None:
    assert parse_levels("128:3,256:1") == {128: 0.75, 256: 0.25}
    with pytest.raises(ValueError, match=r"levels are \[128, 192, 256\]"):
        parse_levels("100:1")
