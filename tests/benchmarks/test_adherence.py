"""The wide model's benchmark: the detector on made-up sprites, the verdicts, the categories, the distance."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.adherence import parsed_size, samples_seen, scores
from benchmarks.curves import Point, history, plot
from benchmarks.fidelity import features, frechet_distance
from training.grounds import Ground
from training.judge.categories import CATEGORIES, Case, draw_cases
from training.judge.detector import Detection, Detector, Seen
from training.judge.drawing import Prompt, requests
from training.judge.ground import GROUNDS
from training.judge.judging import judge
from training.plans import plan_of
from training.rendering import render
from training.scenes import Item, Scene, compose, in_training
from training.sprites import SPRITES


class Blots:
    """A sprite bank of random, smooth, opaque pictures."""

    def __init__(self) -> None:
        noise = torch.rand(len(SPRITES), 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
        noise[:, 3] = 255
        self.pictures = noise

    def at(self, side: int) -> torch.Tensor:
        return F.interpolate(self.pictures, side, mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module")
def bank() -> Blots:
    return Blots()


@pytest.fixture(scope="module")
def detector(bank: Blots) -> Detector:
    return Detector(bank)  # type: ignore[arg-type]


def scene_of(arrangement: str, ground: Ground, *items: Item) -> Scene:
    return compose(items, arrangement, ground, (128, 128), np.random.default_rng(2))


def test_what_is_rendered_is_seen(bank: Blots, detector: Detector) -> None:
    scenes = [
        scene_of("left of", Ground("purple"), Item("zebra"), Item("tent")),
        scene_of("alone", Ground("sunset"), Item("whale", colour="pink")),
        scene_of("alone", Ground("sunset"), Item("key", count=2)),
    ]
    pictures = render(plan_of(scenes, np.random.default_rng(0)), bank).to(torch.uint8)  # type: ignore[arg-type]
    for scene, picture in zip(scenes, pictures, strict=True):
        seen = detector.see(picture)
        assert judge(Case("", scene, "", ("position", "size", "ground")), seen), (scene, seen)
    other = scene_of("left of", Ground("purple"), Item("tent"), Item("zebra"))
    assert not judge(Case("", other, "", ("position",)), detector.see(pictures[0]))


def found(name: str, left: float, top: float, side: float = 64) -> Detection:
    return Detection(name, None, left, top, side, 0.9)


def test_verdicts_follow_the_parts_of_a_case() -> None:
    white, blue = Ground("white"), Ground("blue")
    pair = scene_of("above", white, Item("zebra"), Item("tent"))
    right = Seen((found("tent", 32, 64), found("zebra", 32, 0)), white)
    assert judge(Case("", pair, "", ("position", "ground")), right)
    assert not judge(Case("", pair, "", ("position", "ground")), Seen(right.objects, blue))
    assert not judge(
        Case("", pair, "", ("position",)), Seen((found("tent", 32, 0), found("zebra", 32, 64)), white)
    )
    assert not judge(Case("", pair, ""), Seen((*right.objects, found("key", 0, 0)), white))
    assert judge(Case("", pair, "", ("not the ground",)), Seen(right.objects, blue))
    small = scene_of("alone", white, Item("zebra", size="small"))
    assert judge(Case("", small, "", ("size",)), Seen((found("zebra", 40, 40, 50),), white))
    assert not judge(Case("", small, "", ("size",)), Seen((found("zebra", 16, 16, 96),), white))
    corner = scene_of("top left corner", white, Item("zebra"))
    assert judge(Case("", corner, "", ("position",)), Seen((found("zebra", 0, 0),), white))
    assert not judge(Case("", corner, "", ("position",)), Seen((found("zebra", 64, 0),), white))


def test_every_category_asks_for_what_training_has_not_seen() -> None:
    cases = draw_cases(list(CATEGORIES), 3, (128, 128), 0)
    assert cases == draw_cases(list(CATEGORIES), 3, (128, 128), 0)
    for case in cases:
        assert case.prompt
        if case.category in ("counting", "pair, place", "size", "background", "colour", "pair", "spot"):
            assert not in_training(case.scene.items, case.scene.arrangement, case.scene.ground), case.prompt
        assert bool(case.negative_prompt) == (case.category == "negative prompt")
    prompts = [Prompt(case.prompt, case.negative_prompt) for case in cases]
    assert max(len({p.negative for p in batch}) for batch in requests(prompts)) == 1
    assert [prompt for batch in requests(prompts) for prompt in batch] == prompts


def test_scores_have_an_overall_row() -> None:
    cases = draw_cases(["single", "three"], 2, (128, 128), 0)
    table = scores(cases, [True, True, False, True])
    assert [row["score"] for row in table.values()] == [1.0, 0.5, 0.75]


def test_blur_is_far_and_the_same_is_near() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(60, 3, 12, 12, generator=generator) * 255
    sharp = F.interpolate(coarse, 48).permute(0, 2, 3, 1).to(torch.uint8)
    blurred = F.interpolate(coarse, 48, mode="bilinear").permute(0, 2, 3, 1).to(torch.uint8)
    assert frechet_distance(features(sharp), features(sharp)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features(sharp), features(blurred)) > 1


def test_sizes_are_width_by_height() -> None:
    assert parsed_size("256x192") == (192, 256)
    with pytest.raises(ValueError, match="multiples of 16"):
        parsed_size("100x100")
    assert len({ground.kind for ground in GROUNDS}) == len(GROUNDS)


def measured_after(folder: Path, **settings: int) -> Path:
    """A folder as the benchmark writes it."""
    folder.mkdir()
    overall = {"right": 3, "total": 4}
    (folder / "results.json").write_text(json.dumps({"settings": settings, "scores": {"overall": overall}}))
    return folder


def test_the_history_is_read_from_results_and_plotted(tmp_path: Path) -> None:
    log = [{"step": 50, "samples": 3200, "loss": 0.9}, {"step": 100, "samples": 6400, "loss": 0.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert samples_seen(tmp_path) == {"training_steps": 100, "samples": 6400}
    late, early = measured_after(tmp_path / "b", samples=6400), measured_after(tmp_path / "a", samples=3200)
    points = history([late, early])
    assert points == [Point(3200, 3, 4), Point(6400, 3, 4)]
    plot({"samples_seen": points, "guidance_scale": points}, log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="--run"):
        history([measured_after(tmp_path / "c", seed=0)])
