"""The README's picture: held-out prompts as the default model draws them with seeds 0 to 7, none left out.

python -m benchmarks.sample_sheet --out docs/images/samples.png
"""

from __future__ import annotations

import argparse
import asyncio
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.adherence import Pixels, Sample, generate, pair_scene, single_scene
from training.captions import canonical_caption
from training.scenes import CANVAS

COLUMNS = 4
GAP, LABEL_HEIGHT = 10, 34
SCENES = (single_scene, pair_scene)


def draw_prompts() -> list[Sample]:
    """Four single objects and four pairs, by lot with a fixed seed; picture k has seed k."""
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for scene in SCENES for _ in range(COLUMNS)]
    return [Sample("", scene, canonical_caption(scene), seed) for seed, scene in enumerate(scenes)]


def sheet(pictures: list[Pixels], samples: list[Sample]) -> Image.Image:
    """The pictures with their prompts below them."""
    cell_width, cell_height = CANVAS + GAP, CANVAS + LABEL_HEIGHT
    rows = len(samples) // COLUMNS
    image = Image.new("RGB", (COLUMNS * cell_width + GAP, rows * cell_height + GAP), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    for index, (picture, sample) in enumerate(zip(pictures, samples, strict=True)):
        left, top = GAP + index % COLUMNS * cell_width, GAP + index // COLUMNS * cell_height
        image.paste(Image.fromarray(picture), (left, top))
        lines = textwrap.fill(sample.prompt, 27)
        draw.multiline_text((left, top + CANVAS + 2), lines, fill="black", font=font, spacing=0)
    return image


def main() -> None:
    """Reads the command line, generates and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    samples = draw_prompts()
    pictures = asyncio.run(generate(arguments.model, samples, {}))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures, samples).save(arguments.out)


if __name__ == "__main__":
    main()
