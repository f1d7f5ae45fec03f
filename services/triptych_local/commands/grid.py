"""`triptych grid`: a labelled sheet of pictures over two parameters."""

from __future__ import annotations

import asyncio
import json
import secrets
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from io import BytesIO
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from triptych.client import AsyncClient, Generation
from triptych.generation_options import GenerationOptions
from triptych_coordinator.stages.concurrent import in_order
from triptych_local.commands.generate import connected_client
from triptych_local.commands.settings import Axis, GridSettings
from triptych_local.output import say, write_file
from triptych_local.progress import Display, display

CONCURRENT = 8  # as many as a coordinator runs, and as many that wait
GAP, FONT_SIZE, LABEL_WIDTH, LINE = 8, 14, 150, 18
NO_AXIS = Axis("", ("",), ({},))


async def grid(asked: GridSettings) -> None:
    """Makes a picture for each pair of values, several at the same time, and writes the sheet.

    Without a seed anywhere all pictures get the same one, drawn here. Raises StartError or TriptychError.
    """
    x, y = asked.x, asked.y or NO_AXIS
    base: dict[str, Any] = {"prompts": [asked.prompt], "seeds": [secrets.randbelow(1 << 32)]}
    for fixed in (asked.place.model(), *asked.fixed):
        base |= fixed
    cells = [base | across | down for down in y.parameters for across in x.parameters]
    with display() as shown:
        async with connected_client(asked.place, shown) as client:
            generations = await _generate(client, cells, shown)
    pngs = [generation.images[0].png for generation in generations]
    sheet = drawn(pngs, x, y)
    text = json.dumps(_record(pngs, x, y), ensure_ascii=False)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("triptych", text)
    written = BytesIO()
    await asyncio.to_thread(sheet.save, written, "PNG", pnginfo=chunks)
    await asyncio.to_thread(write_file, asked.output, written.getvalue())
    say(f"{asked.output}  {len(cells)} pictures")


async def _generate(
    client: AsyncClient, cells: Sequence[Mapping[str, Any]], shown: Display
) -> list[Generation]:
    done = 0

    async def one(cell: Mapping[str, Any]) -> Generation:
        nonlocal done
        parameters = {name: value for name, value in cell.items() if name != "prompts"}
        generation = await client.generate(cell["prompts"], **cast(GenerationOptions, parameters))
        done += 1
        shown.step(done, len(cells))
        return generation

    shown.phase(f"{len(cells)} pictures")
    async with aclosing(in_order([partial(one, cell) for cell in cells], CONCURRENT)) as generations:
        return [generation async for generation in generations]


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
        place = left + GAP + column * (width + GAP), top + GAP + row * (height + GAP)
        sheet.paste(picture, place, picture if picture.has_transparency_data else None)
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
