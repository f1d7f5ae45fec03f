"""How well a model's pictures show what their prompts ask for, in the manner of GenEval (Ghosh et al. 2023).

python -m benchmarks.adherence --model triptych-small --data node_modules --out runs/adherence

Every prompt names a combination that training never saw (a bare "a zebra" can only be new by its seed).
A detector that knows the sprites judges the pictures; its own error on rendered scenes is measured with it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.ground_truth import DEGRADATIONS, detector_error, strangers_accepted, through_vae
from benchmarks.scoring import Verdict, judge_image, sprite_detector, wilson_interval
from training.captions import article, canonical_caption
from training.scenes import (
    BACKGROUNDS,
    CANVAS,
    PAIRS,
    RELATIONS,
    SINGLES,
    Scene,
    Sprites,
    load_sprites,
    place_pair,
    place_single,
)

Pixels = NDArray[np.uint8]
BATCH = 8  # pictures in one request
COLUMNS = 10  # of the contact sheet
LABEL_HEIGHT = 44
GROUND_TRUTH_SCENES = 50  # of one object, and as many of two


@dataclass(frozen=True)
class Category:
    """A kind of prompt: how its scenes are drawn, how it asks for them, what must be right."""

    scene: Callable[[np.random.Generator], Scene]
    prompt: Callable[[Scene], str]
    right: Callable[[Verdict], bool]


@dataclass(frozen=True)
class Sample:
    """One prompt, its scene and category, and the seed of its picture."""

    category: str
    scene: Scene
    prompt: str
    seed: int


def single_scene(rng: np.random.Generator) -> Scene:
    """One object on a background, held out of training together."""
    name, background = SINGLES["heldout"][rng.integers(len(SINGLES["heldout"]))]
    return place_single(name, background, rng)


def pair_scene(rng: np.random.Generator) -> Scene:
    """Two objects held out of training together."""
    first, second = PAIRS["heldout"][rng.integers(len(PAIRS["heldout"]))]
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    return place_pair(first, second, RELATIONS[rng.integers(len(RELATIONS))], background, rng)


def objects_prompt(scene: Scene) -> str:
    """The objects alone: "a zebra and a fire truck"."""
    return " and ".join(article(placed.name) + placed.name for placed in scene.objects)


def position_prompt(scene: Scene) -> str:
    """Objects and their relation, without the background."""
    return canonical_caption(scene).rpartition(" on ")[0]


CATEGORIES = {
    "single object": Category(single_scene, objects_prompt, lambda verdict: verdict.objects),
    "single, background": Category(single_scene, canonical_caption, lambda verdict: verdict.everything),
    "pair": Category(pair_scene, objects_prompt, lambda verdict: verdict.objects),
    "pair, position": Category(pair_scene, position_prompt, lambda verdict: verdict.position),
    "pair, position, background": Category(pair_scene, canonical_caption, lambda verdict: verdict.everything),
}


def draw_samples(prompts_per_category: int, seed: int) -> list[Sample]:
    """The prompts of a run, the same for the same seed; picture k has the seed `seed` + k."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for name, category in CATEGORIES.items():
        for _ in range(prompts_per_category):
            scene = category.scene(rng)
            samples.append(Sample(name, scene, category.prompt(scene), seed + len(samples)))
    return samples


async def generate(model: str, samples: Sequence[Sample], options: dict[str, Any]) -> list[Pixels]:
    """The samples' pictures (uint8 [128, 128, 3]) from the services in this process."""
    from triptych_local.running.fused import fused_client
    from triptych_local.running.settings import ModelChoice

    pictures: list[Pixels] = []
    started = time.monotonic()
    async with fused_client(ModelChoice(model=model)) as client:
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            prompts, seeds = [s.prompt for s in batch], [s.seed for s in batch]
            generation = await client.generate(prompts, seeds=seeds, height=CANVAS, width=CANVAS, **options)
            for image in sorted(generation.images, key=lambda image: image.index):
                pictures.append(np.asarray(Image.open(io.BytesIO(image.png)).convert("RGB")))
            seconds = time.monotonic() - started
            print(
                f"\r{len(pictures)} of {len(samples)} pictures, {seconds:.0f} s",
                end="",
                file=sys.stderr,
                flush=True,
            )
    print(file=sys.stderr)
    return pictures


def outcomes(pictures: Sequence[Pixels], samples: Sequence[Sample], sprites: Sprites) -> list[bool]:
    """Whether each picture has all that its category asks for."""
    detector = sprite_detector(sprites)
    return [
        CATEGORIES[sample.category].right(judge_image(picture, sample.scene, detector))
        for picture, sample in zip(pictures, samples, strict=True)
    ]


def scores(samples: Sequence[Sample], right: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Per category: right, total, score and the 95 % Wilson interval."""
    table = {}
    for name in dict.fromkeys(sample.category for sample in samples):
        results = [ok for sample, ok in zip(samples, right, strict=True) if sample.category == name]
        low, high = wilson_interval(sum(results), len(results))
        table[name] = {
            "right": sum(results),
            "total": len(results),
            "score": sum(results) / len(results),
            "interval": [low, high],
        }
    return table


def contact_sheet(
    pictures: Sequence[Pixels], samples: Sequence[Sample], right: Sequence[bool]
) -> Image.Image:
    """Every picture with its prompt below it, framed green where right and red where wrong."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (CANVAS + 8), rows * (CANVAS + 8 + LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, sample, ok) in enumerate(zip(pictures, samples, right, strict=True)):
        left, top = index % COLUMNS * (CANVAS + 8), index // COLUMNS * (CANVAS + 8 + LABEL_HEIGHT)
        draw.rectangle(
            (left + 1, top + 1, left + CANVAS + 6, top + CANVAS + 6), fill="green" if ok else "red"
        )
        sheet.paste(Image.fromarray(picture), (left + 4, top + 4))
        label = ("+ " if ok else "- ") + sample.prompt
        draw.multiline_text((left + 4, top + CANVAS + 8), textwrap.fill(label, 22), fill="black", spacing=0)
    return sheet


def print_table(table: dict[str, dict[str, Any]], errors: dict[str, float]) -> None:
    """The scores and the detector's error, for people."""
    print(f"{'category':28} {'score':>7}   95 % interval    right")
    for name, row in table.items():
        low, high = row["interval"]
        print(f"{name:28} {row['score']:7.1%}   {low:6.1%} to {high:6.1%}  {row['right']}/{row['total']}")
    print("\nthe detector's own error on rendered scenes")
    for name, error in errors.items():
        print(f"{name:28} {error:7.1%}")


def parsed() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--prompts-per-category", type=int, default=50)
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and samples.png")
    return parser.parse_args()


def main() -> None:
    """Generates, judges, prints and writes."""
    arguments = parsed()
    chosen = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance}
    options = {name: value for name, value in chosen.items() if value is not None}
    sprites = load_sprites(arguments.data)
    samples = draw_samples(arguments.prompts_per_category, arguments.seed)
    pictures = asyncio.run(generate(arguments.model, samples, options))
    right = outcomes(pictures, samples, sprites)
    table = scores(samples, right)
    rng = np.random.default_rng(arguments.seed)
    truth = [draw(rng) for draw in (single_scene, pair_scene) for _ in range(GROUND_TRUTH_SCENES)]
    errors = detector_error(truth, sprites, {**DEGRADATIONS, "the model's VAE": through_vae(arguments.model)})
    errors["unknown emoji accepted"] = strangers_accepted(arguments.data, sprites, len(truth), rng)
    print_table(table, errors)
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {"model": arguments.model, "seed": arguments.seed, **options}
    judged = [
        {"category": s.category, "prompt": s.prompt, "seed": s.seed, "right": ok}
        for s, ok in zip(samples, right, strict=True)
    ]
    results = {"settings": settings, "scores": table, "detector_error": errors, "samples": judged}
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    contact_sheet(pictures, samples, right).save(arguments.out / "samples.png")


if __name__ == "__main__":
    main()
