"""`triptych grid`: a labelled sheet of pictures over two parameters."""

from __future__ import annotations

import asyncio
import json
import secrets
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from triptych.client import AsyncClient, Generation, GenerationOptions
from triptych.loras import read_lora
from triptych_local.commands.generate import Place, connected_client
from triptych_local.inputs import read_file, read_margins, read_variation
from triptych_local.options import (
    read_composition,
    read_layers,
    read_method,
    read_schedule,
    read_sigma_schedule,
    read_size,
    read_solver,
    read_step_reuse,
)
from triptych_local.progress import Display, display

CONCURRENT = 8  # as many as a coordinator runs, and as many that wait
GAP, FONT_SIZE, LABEL_WIDTH, LINE = 8, 14, 150, 18


def _size(text: str) -> dict[str, Any]:
    width, height = read_size(text)
    return {"width": width, "height": height}


def _weights(text: str) -> dict[str, Any]:
    if text not in ("yes", "no"):
        raise ValueError(f"'{text}' is neither yes nor no")
    return {"prompt_weighting": text == "yes"}


PARAMETERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "prompt": lambda text: {"prompt": text},
    "negative": lambda text: {"negative_prompt": text},
    "seed": lambda text: {"seed": int(text)},
    "steps": lambda text: {"num_inference_steps": int(text)},
    "solver": lambda text: {"solver": read_solver(text)},
    "sigma-schedule": lambda text: {"sigma_schedule": read_sigma_schedule(text)},
    "step-reuse": lambda text: {"step_reuse": read_step_reuse(text)},
    "guidance": lambda text: {"guidance_scale": float(text)},
    "guidance-schedule": lambda text: {"guidance_schedule": read_schedule(text)},
    "guidance-method": lambda text: {"guidance_method": read_method(text)},
    "guidance-rescale": lambda text: {"guidance_rescale": float(text)},
    "skip-layers": lambda text: {"skip_layer_guidance": read_layers(text)},
    "perturb-layers": lambda text: {"perturbed_attention_guidance": read_layers(text)},
    "compose": lambda text: {"compositions": [read_composition([text], None)]},
    "weights": _weights,
    "lora": lambda text: {"loras": dict([read_lora(text)])},
    "size": _size,
    "image": lambda text: {"image": read_file(Path(text))},
    "mask": lambda text: {"mask": read_file(Path(text))},
    "margins": lambda text: {"margins": read_margins(text)},
    "strength": lambda text: {"strength": float(text)},
    "variation": lambda text: {"variation": read_variation(text)},
}
"""What a grid can go over, by the name of `triptych generate`'s option."""


@dataclass(frozen=True)
class Axis:
    """A parameter and its values, as words and as options of a request."""

    name: str
    words: tuple[str, ...]
    options: tuple[dict[str, Any], ...]


NO_AXIS = Axis("", ("",), ({},))


def read_axis(text: str) -> Axis:
    """The axis of "guidance=1,3,5", or "prompt=a cat, asleep|a dog": with a |, commas are part of the values.

    Raises:
        ValueError: it says what is wrong.
    """
    values = text.partition("=")[2]
    return _axis(text, values.split("|" if "|" in values else ","))


def read_value(text: str) -> dict[str, Any]:
    """The options of "steps=20", whose value may hold commas. Raises ValueError."""
    return _axis(text, [text.partition("=")[2]]).options[0]


def _axis(text: str, values: Sequence[str]) -> Axis:
    name, equals, _ = text.partition("=")
    reader = PARAMETERS.get(name.strip())
    if not equals or reader is None:
        raise ValueError(f"'{text}' is not NAME=VALUE,VALUE,... with one of {', '.join(PARAMETERS)}")
    words = tuple(value.strip() for value in values)
    try:
        return Axis(name.strip(), words, tuple(reader(word) for word in words))
    except ValueError as error:
        raise ValueError(f"'{text}': {error}") from error


async def write_grid(
    prompt: str, x: Axis, y: Axis, fixed: Mapping[str, Any], output: Path, place: Place
) -> None:
    """Makes a picture for each pair of values, several at the same time, and writes the sheet.

    Without a seed anywhere all pictures get the same one, drawn here. Raises StartError or TriptychError.
    """
    base = {"prompt": prompt, "seed": secrets.randbelow(1 << 32), **fixed}
    cells = [base | across | down for down in y.options for across in x.options]
    with display() as shown:
        async with connected_client(place, shown) as client:
            generations = await _generate(client, cells, shown)
    pngs = [generation.images[0].png for generation in generations]
    sheet = drawn(pngs, x, y)
    text = json.dumps(_record(pngs, x, y), ensure_ascii=False)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("triptych", text)
    await asyncio.to_thread(sheet.save, output, "PNG", pnginfo=chunks)
    print(f"{output}  {len(cells)} pictures", flush=True)


async def _generate(
    client: AsyncClient, cells: Sequence[Mapping[str, Any]], shown: Display
) -> list[Generation]:
    places, done = asyncio.Semaphore(CONCURRENT), 0

    async def one(cell: Mapping[str, Any]) -> Generation:
        nonlocal done
        options = {name: value for name, value in cell.items() if name != "prompt"}
        async with places:
            generation = await client.generate(cell["prompt"], **cast(GenerationOptions, options))
        done += 1
        shown.step(done, len(cells))
        return generation

    shown.phase(f"{len(cells)} pictures")
    tasks = [asyncio.create_task(one(cell)) for cell in cells]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def drawn(pngs: Sequence[bytes], x: Axis, y: Axis) -> Image.Image:
    """The sheet: the values of x above the columns, those of y to the left of the rows."""
    pictures = [Image.open(BytesIO(png), formats=["PNG"]) for png in pngs]
    width, height = (max(side) for side in zip(*(picture.size for picture in pictures), strict=True))
    font = ImageFont.load_default(FONT_SIZE)
    above = [_label(x, word, width) for word in x.words]
    top = GAP + LINE * max(label.count("\n") + 1 for label in above) if x.name else 0
    left = LABEL_WIDTH if y.name else 0
    size = (left + len(x.words) * (width + GAP) + GAP, top + len(y.words) * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(above):
        draw.multiline_text((left + GAP + column * (width + GAP), GAP), label, fill="black", font=font)
    for row, word in enumerate(y.words):
        label = _label(y, word, LABEL_WIDTH - 2 * GAP)
        draw.multiline_text((GAP, top + GAP + row * (height + GAP)), label, fill="black", font=font)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, len(x.words))
        sheet.paste(picture, (left + GAP + column * (width + GAP), top + GAP + row * (height + GAP)))
    return sheet


def _label(axis: Axis, word: str, width: int) -> str:
    """The words of a label, in lines that are about as wide as there is room."""
    text = word if axis.name == "prompt" else f"{axis.name} {word}"
    return textwrap.fill(text, max(8, width * 2 // FONT_SIZE)) if axis.name else ""


def _record(pngs: Sequence[bytes], x: Axis, y: Axis) -> dict[str, Any]:
    """What the sheet says about itself: its axes, and what each picture says, row by row."""
    records = []
    for png in pngs:
        with Image.open(BytesIO(png), formats=["PNG"]) as picture:
            picture.load()
            records.append(json.loads(picture.info["triptych"]))
    axes = {key: {axis.name: list(axis.words)} for key, axis in (("x", x), ("y", y)) if axis.name}
    return {"grid": axes, "pictures": records}
