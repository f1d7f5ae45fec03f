"""The README's picture: what people type first, at three sizes, seeds from 0 on as they came out.

python -m benchmarks.sample_sheet --out docs/images/samples.png
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.judge.drawing import Prompt, draw
from training.scenes import Canvas

GAP, LABEL_HEIGHT = 10, 34
PROMPTS = (
    "two penguins",
    "a cat on a beach",
    "a giraffe and a pizza",
    "a carrot, a drum and a bee",
    "three bananas",
    "a red car in a forest",
    "an owl to the right of a guitar on a pink background",
    "a small robot at night",
)
LAYOUT: tuple[tuple[Canvas, tuple[str, ...]], ...] = (
    ((128, 128), PROMPTS[:4]),
    ((128, 128), PROMPTS[4:]),
    (
        (128, 192),
        ("a fox next to a tent in a forest", "three turtles on the sea", "a rocket and a planet in space"),
    ),
    ((256, 256), ("a teddy bear on grass", "two owls at night")),
)

Pixels = NDArray[np.uint8]


def row(pictures: list[Pixels], prompts: tuple[str, ...]) -> Image.Image:
    """Pictures of one size side by side, with their prompts below them."""
    height, width = pictures[0].shape[:2]
    image = Image.new("RGB", (len(prompts) * (width + GAP) + GAP, height + LABEL_HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(10)
    for column, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        left = GAP + column * (width + GAP)
        image.paste(Image.fromarray(picture), (left, 0))
        text = textwrap.fill(prompt, width // 5)
        pen.multiline_text((left, height + 2), text, fill="black", font=font, spacing=0)
    return image


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Rows below each other."""
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows) + GAP), "white")
    top = GAP
    for each in rows:
        sheet.paste(each, (0, top))
        top += each.height
    return sheet


def main() -> None:
    """Reads the command line, generates and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows, seed = [], 0
    for canvas, prompts in LAYOUT:
        pictures = draw(arguments.model, [Prompt(text) for text in prompts], canvas, seed, {})
        rows.append(row(list(pictures.numpy()), prompts))
        seed += len(prompts)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    stacked(rows).save(arguments.out)


if __name__ == "__main__":
    main()
