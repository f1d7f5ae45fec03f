"""What counts as a right picture: a scene against what the detector finds, and how sure a score is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.detector import Detection, Detector
from training.scenes import BACKGROUNDS, SPRITE_SIZES, Scene, Sprites


@dataclass(frozen=True)
class Verdict:
    """What a picture has of its scene.

    any_object: at least one of the named objects is there. objects: each is there once, and nothing else is.
    position: objects, and the first is where the relation says (for one object, the same as objects).
    background: the ground has the named colour.
    """

    any_object: bool
    objects: bool
    position: bool
    background: bool

    @property
    def everything(self) -> bool:
        """Objects, position and background."""
        return self.position and self.background


@cache
def sprite_detector(sprites: Sprites) -> Detector:
    """The detector for a set of sprites on the training's backgrounds; made once per set."""
    sizes = sorted(SPRITE_SIZES.values())
    pictures = {name: picture for (name, size), picture in sprites.pictures.items() if size == sizes[-1]}
    return Detector(pictures, BACKGROUNDS, sizes=sizes)


def relation_of(first: tuple[float, float], second: tuple[float, float]) -> str:
    """How a centre (x, y) in pixels lies to another: the longer of the two distances decides."""
    across, down = second[0] - first[0], second[1] - first[1]
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def judge(scene: Scene, detections: Sequence[Detection], background: str) -> Verdict:
    """Compares what a scene asks for with the objects and the background found in a picture."""
    asked = sorted(placed.name for placed in scene.objects)
    found = sorted(detection.name for detection in detections)
    objects = asked == found
    return Verdict(
        any_object=any(name in found for name in asked),
        objects=objects,
        position=objects and _positioned(scene, detections),
        background=background == scene.background,
    )


def judge_image(image: NDArray[np.uint8], scene: Scene, detector: Detector) -> Verdict:
    """Judges one picture (uint8 [H, W, 3])."""
    return judge(scene, detector.detect(image), detector.background(image))


def score_images(images: NDArray[np.uint8], scenes: Sequence[Scene], sprites: Sprites) -> dict[str, float]:
    """Shares of right pictures (uint8 [N, 128, 128, 3], one per scene), from 0 to 1.

    Keys: single_object, single_all (object and background), pair_any (one of the two objects), pair_objects,
    pair_position, pair_all, background. A key whose kind of scene does not occur is absent.
    """
    detector = sprite_detector(sprites)
    singles: list[Verdict] = []
    pairs: list[Verdict] = []
    for image, scene in zip(images, scenes, strict=True):
        (pairs if len(scene.objects) > 1 else singles).append(judge_image(image, scene, detector))
    outcomes = {
        "single_object": [verdict.objects for verdict in singles],
        "single_all": [verdict.everything for verdict in singles],
        "pair_any": [verdict.any_object for verdict in pairs],
        "pair_objects": [verdict.objects for verdict in pairs],
        "pair_position": [verdict.position for verdict in pairs],
        "pair_all": [verdict.everything for verdict in pairs],
        "background": [verdict.background for verdict in singles + pairs],
    }
    return {key: share(values) for key, values in outcomes.items() if values}


def share(outcomes: Iterable[bool]) -> float:
    """The part of the outcomes that are true."""
    return float(np.mean(list(outcomes)))


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); z = 1.96 gives 95 %."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    proportion = successes / trials
    denominator = 1 + z * z / trials
    middle = (proportion + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials**2)) / denominator
    return max(0.0, middle - half), min(1.0, middle + half)


def _positioned(scene: Scene, detections: Sequence[Detection]) -> bool:
    """Whether the objects, all there once, lie as the scene's relation says."""
    if scene.relation is None:
        return True
    centres = {detection.name: detection.centre for detection in detections}
    first, second = (centres[placed.name] for placed in scene.objects)
    return relation_of(first, second) == scene.relation
