"""The pictures of docs/sampling.md: what each choice of sampling does, by the default model.

python -m benchmarks.quality.sampling_sheets --out docs/images

Every cell of a sheet is one picture of the same prompt and seed; below it is the number of rows that it took:
a sample under one branch at one evaluation is a row.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks import command_line
from triptych.client import AsyncClient, Generation
from triptych.compute.kernels import configure_math_libraries
from triptych_local.request import read_parameter

Options = Mapping[str, Any]

CELL, GAP, LABEL_WIDTH, LABEL_HEIGHT = 128, 4, 118, 14
WEBP_QUALITY = 80
PROMPT = "a teddy bear to the left of a tractor on a gray background"
SEED = 0


@dataclass(frozen=True)
class Sheet:
    """The options of every cell, by the labels of its row and column.

    edits: whether cells start from the picture of PROMPT and SEED.
    """

    cells: Mapping[str, Mapping[str, Options]]
    edits: bool = False


def crossed(rows: Mapping[str, Options], columns: Mapping[str, Options]) -> Sheet:
    """A cell has the options of its row and of its column."""
    return Sheet({row: {column: {**a, **b} for column, b in columns.items()} for row, a in rows.items()})


def steps(*numbers: int) -> dict[str, Options]:
    """Columns with so many steps."""
    return {f"{number} steps": {"num_inference_steps": number} for number in numbers}


def left_half() -> bytes:
    """A mask: white on the left, where the picture is made anew."""
    mask = Image.new("L", (CELL, CELL))
    mask.paste(255, (0, 0, CELL // 2, CELL))
    return _png(mask)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


SOLVERS = (
    *("euler", "heun", "midpoint", "dpmpp-2m", "unipc", "lcm"),
    *("euler-ancestral", "stochastic-euler:0.5", "adaptive"),
)
SIGMA_SCHEDULES = ("checkpoint", "linear", "karras", "exponential", "beta")
REUSES = (
    *("none", "guidance:2", "guidance:4", "extrapolation:2", "extrapolation:3"),
    *("features:0.05", "features:0.1", "features:0.2"),
)
OTHER_PROMPT = "a penguin to the left of a rocket on a gray background"
STRENGTHS = {f"strength {number:g}": number for number in (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)}
SHEETS: Mapping[str, Sheet] = {
    "solvers": crossed(
        {solver: read_parameter("solver", solver) for solver in SOLVERS}, steps(4, 8, 16, 28, 50)
    ),
    "sigma-schedules": crossed(
        {name: read_parameter("sigma-schedule", name) for name in SIGMA_SCHEDULES},
        steps(4, 8, 16, 28, 50),
    ),
    "guidance": crossed(
        {
            "cfg": {},
            "cfg, linear:1": read_parameter("guidance-schedule", "linear:1"),
            "cfg, interval:0.2:0.8": read_parameter("guidance-schedule", "interval:0.2:0.8"),
            "cfg, rescale 0.7": {"guidance_rescale": 0.7},
            "apg": read_parameter("guidance-method", "apg"),
            "zero-star": read_parameter("guidance-method", "zero-star"),
            "skip layer 3": read_parameter("skip-layers", "3:1:0:0.5"),
            "perturb layer 3": read_parameter("perturb-layers", "3:1:0:0.5"),
        },
        {f"guidance {scale}": {"guidance_scale": scale} for scale in (1, 2, 3, 4, 5, 7, 10)},
    ),
    "step-reuse": crossed(
        {reuse: read_parameter("step-reuse", reuse) for reuse in REUSES}, steps(8, 16, 28, 50)
    ),
    "editing": Sheet(
        {
            "same prompt": {name: {"strength": number} for name, number in STRENGTHS.items()},
            "other prompt": {
                name: {"strength": number, "prompt": OTHER_PROMPT} for name, number in STRENGTHS.items()
            },
            "left half only": {
                name: {"strength": number, "prompt": OTHER_PROMPT, "mask": left_half()}
                for name, number in STRENGTHS.items()
            },
        },
        edits=True,
    ),
}


async def draw(client: AsyncClient, sheet: Sheet) -> Image.Image:
    """Every cell's picture and the number of its rows, with labels."""
    columns = list(next(iter(sheet.cells.values())))
    width = LABEL_WIDTH + len(columns) * (CELL + GAP)
    height = LABEL_HEIGHT + len(sheet.cells) * (CELL + LABEL_HEIGHT)
    image = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for column, label in enumerate(columns):
        pen.text((LABEL_WIDTH + column * (CELL + GAP), 1), label, fill="black", font=font)
    source = {"image": (await generated(client, {})).images[0].png} if sheet.edits else {}
    for row, (name, cells) in enumerate(sheet.cells.items()):
        top = LABEL_HEIGHT + row * (CELL + LABEL_HEIGHT)
        pen.text((2, top + CELL // 2 - 6), name, fill="black", font=font)
        for column, options in enumerate(cells.values()):
            generation = await generated(client, {**source, **options})
            left = LABEL_WIDTH + column * (CELL + GAP)
            with Image.open(io.BytesIO(generation.images[0].png), formats=["PNG"]) as picture:
                image.paste(picture, (left, top))
            rows = f"{generation.finished.rows} rows"
            pen.text((left, top + CELL), rows, fill="dimgray", font=font)
            print(".", end="", file=sys.stderr, flush=True)
    return image


async def generated(client: AsyncClient, options: Options) -> Generation:
    """PROMPT's picture by SEED, unless the options say otherwise."""
    chosen: dict[str, Any] = {"prompt": PROMPT, "seed": SEED, "height": CELL, "width": CELL, **options}
    return await client.generate(**chosen)


async def write(folder: Path, names: list[str], model: str) -> None:
    """The sheets of these names as WebP files."""
    from triptych_local.running.fused import fused_client
    from triptych_local.running.settings import ModelChoice

    async with fused_client(ModelChoice(model=model, dtype="float32")) as client:
        for name in names:
            image = await draw(client, SHEETS[name])
            image.save(folder / f"{name}.webp", quality=WEBP_QUALITY, method=6)
            print(f" {folder / name}.webp", file=sys.stderr)


def main() -> None:
    """Reads the command line and draws."""
    parser = command_line.parser(__doc__, out=False)
    parser.add_argument("sheets", nargs="*", help=f"some of {', '.join(SHEETS)} (default all)")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    arguments = parser.parse_args()
    unknown = set(arguments.sheets) - SHEETS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(SHEETS)}")
    configure_math_libraries()
    arguments.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(write(arguments.out, arguments.sheets or list(SHEETS), arguments.model))


if __name__ == "__main__":
    main()
