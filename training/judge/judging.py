"""What counts as a right picture: a case against what the detector sees."""

from collections import Counter

import numpy as np

from training.judge.categories import Case
from training.judge.detector import Detection, Seen
from training.scenes import Item, Scene

SIDE_TOLERANCE = 0.25  # of the side that a size means
Point = tuple[float, float]


def judge(case: Case, seen: Seen) -> bool:
    """Whether the objects are those of the scene, no more and no fewer, and every part is right."""
    checks = {
        "position": lambda: in_place(case.scene, seen),
        "size": lambda: in_size(case.scene, seen),
        "ground": lambda: seen.ground.kind == case.scene.ground.kind,
        "not the ground": lambda: seen.ground.kind != case.scene.ground.kind,
    }
    return objects_right(case.scene, seen) and all(checks[part]() for part in case.parts)


def objects_right(scene: Scene, seen: Seen) -> bool:
    """Whether exactly the scene's objects are there, as many and in the colours that it says."""
    asked = Counter({(item.name, item.colour): item.count for item in scene.items})
    return asked == Counter((found.name, found.colour) for found in seen.objects)


def of_item(item: Item, seen: Seen) -> list[Detection]:
    """What was found of one thing."""
    return [d for d in seen.objects if (d.name, d.colour) == (item.name, item.colour)]


def middle(item: Item, seen: Seen) -> Point:
    """The mean of the centres of its objects."""
    x, y = np.mean([found.centre for found in of_item(item, seen)], axis=0)
    return float(x), float(y)


def in_size(scene: Scene, seen: Seen) -> bool:
    """Whether every object is about as large as its word says."""
    for item, boxes in zip(scene.items, scene.boxes, strict=True):
        side = boxes[0].side
        if any(abs(found.side - side) > SIDE_TOLERANCE * side for found in of_item(item, seen)):
            return False
    return True


def in_place(scene: Scene, seen: Seen) -> bool:
    """Whether the things, all there, stand as the arrangement says."""
    points = [middle(item, seen) for item in scene.items]
    if len(points) == 1:
        return at_spot(points[0], scene)
    if scene.arrangement in ("between", "row"):
        order = [points[k][0] for k in ((1, 0, 2) if scene.arrangement == "between" else (0, 1, 2))]
        return order == sorted(order) or (scene.arrangement == "between" and order == sorted(order)[::-1])
    if len(points) == 2 and scene.arrangement != "two":
        return related(points[0], points[1], scene.arrangement)
    return True


def related(first: Point, second: Point, relation: str) -> bool:
    """Whether the longer of the two distances is in the relation's direction."""
    across, down = second[0] - first[0], second[1] - first[1]
    return {
        "left of": across > abs(down),
        "right of": -across > abs(down),
        "above": down > abs(across),
        "below": -down > abs(across),
        "beside": abs(across) > abs(down),
    }[relation]


def at_spot(point: Point, scene: Scene) -> bool:
    """Whether one thing stands in the half, or the quarter, of the picture that its place means."""
    x, y = point[0] / scene.canvas[1], point[1] / scene.canvas[0]
    spot = scene.arrangement
    sides = {"left": x < 0.45, "right": x > 0.55, "top": y < 0.45, "bottom": y > 0.55}
    return all(right for word, right in sides.items() if word in spot.split())
