"""How well the model's pictures show what their prompts ask for, by category.

python -m benchmarks.adherence --data training/node_modules --out runs/adherence

Writes results.json and sheet.png with each category's first pictures, none left out. --size measures another
size or shape; the detector's own error, on the same scenes rendered, is measured and printed with it.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.fidelity import features, frechet_distance
from training.judge.categories import CATEGORIES, Case, draw_cases
from training.judge.detector import Detector
from training.judge.drawing import Prompt, draw
from training.judge.intervals import wilson_interval
from training.judge.judging import judge
from training.pictures import Painter
from training.plans import plan_of
from training.rendering import render
from training.scenes import Canvas

COLUMNS, LABEL_HEIGHT = 10, 44  # of the sheet


def drawn(model: str, cases: list[Case], canvas: Canvas, seed: int, options: dict[str, Any]) -> Tensor:
    """The model's pictures of the cases: uint8 [cases, height, width, 3]."""
    return draw(model, [Prompt(c.prompt, c.negative_prompt) for c in cases], canvas, seed, options)


def rendered(cases: list[Case], painter: Painter, seed: int) -> Tensor:
    """The cases' scenes as training renders them: uint8 [cases, height, width, 3]."""
    plan = plan_of([case.scene for case in cases], np.random.default_rng(seed))
    return render(plan, painter.bank).to(torch.uint8)


def judged(cases: list[Case], pictures: Tensor, detector: Detector) -> list[bool]:
    """Whether each picture has all that its category asks for."""
    return [judge(case, detector.see(picture)) for case, picture in zip(cases, pictures, strict=True)]


def scores(cases: list[Case], right: list[bool]) -> dict[str, dict[str, Any]]:
    """Per category, and over all: right, total, score and the 95 % Wilson interval."""
    table = {}
    for name in (*dict.fromkeys(case.category for case in cases), "overall"):
        results = [ok for case, ok in zip(cases, right, strict=True) if name in (case.category, "overall")]
        interval = wilson_interval(sum(results), len(results))
        table[name] = {
            "right": sum(results),
            "total": len(results),
            "score": sum(results) / len(results),
            "interval": list(interval),
        }
    return table


def detector_error(cases: list[Case], painter: Painter, detector: Detector, seed: int) -> dict[str, float]:
    """Share of the cases whose rendered scenes are judged wrong, by category.

    A rendered scene has the ground that a negative prompt excludes, so that only its objects are judged.
    """
    plain = [Case(c.category, c.scene, c.prompt, tuple(p for p in c.parts if "not" not in p)) for c in cases]
    right = judged(plain, rendered(plain, painter, seed), detector)
    return {name: 1 - row["score"] for name, row in scores(plain, right).items()}


def contact_sheet(cases: list[Case], pictures: Tensor, right: list[bool]) -> Image.Image:
    """A row of each category's first pictures with their prompts, framed green where right, else red."""
    rows: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        rows.setdefault(case.category, []).append(index)
    height, width = pictures.shape[1:3]
    sheet = Image.new("RGB", (COLUMNS * (width + 8), len(rows) * (height + 8 + LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, indices in enumerate(rows.values()):
        for column, index in enumerate(indices[:COLUMNS]):
            left, top = column * (width + 8), row * (height + 8 + LABEL_HEIGHT)
            frame = (left + 1, top + 1, left + width + 6, top + height + 6)
            draw.rectangle(frame, fill="green" if right[index] else "red")
            sheet.paste(Image.fromarray(pictures[index].numpy()), (left + 4, top + 4))
            negative = cases[index].negative_prompt
            label = cases[index].prompt + (f" (not: {negative})" if negative else "")
            text = textwrap.fill(label, max(width // 6, 12))
            draw.multiline_text((left + 4, top + height + 8), text, fill="black", spacing=0)
    return sheet


def print_table(table: dict[str, dict[str, Any]], errors: dict[str, float]) -> None:
    """The scores and the detector's error, for people."""
    print(f"{'category':18} {'score':>7}   95 % interval    right     detector's error")
    for name, row in table.items():
        low, high = row["interval"]
        share = f"{row['right']}/{row['total']}"
        print(f"{name:18} {row['score']:7.1%}   {low:6.1%} to {high:6.1%}  {share:8}  {errors[name]:7.1%}")


def parsed_size(text: str) -> Canvas:
    """ "256x192" (width x height) to (192, 256)."""
    width, height = (int(part) for part in text.split("x"))
    if width % 16 or height % 16 or not min(width, height) >= 96:
        raise ValueError(f"a size is width x height in multiples of 16 from 96 on, not {text}")
    return height, width


def samples_seen(run: Path) -> dict[str, int]:
    """How far a transformer's run has come, by the last line of its log."""
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return {"training_steps": last["step"], "samples": last["samples"]}


def main() -> None:
    """Generates, judges, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="triptych-small", help="name or folder (default triptych-small)")
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and sheet.png")
    parser.add_argument("--prompts-per-category", type=int, default=50)
    parser.add_argument("--categories", nargs="+", choices=list(CATEGORIES), default=list(CATEGORIES))
    parser.add_argument("--size", type=parsed_size, default="128x128", help="width x height")
    parser.add_argument("--lora", help="name of a LoRA that comes with the model")
    parser.add_argument("--steps", type=int, help="default: the model's own, or the LoRA's")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's own)")
    parser.add_argument("--run", type=Path, help="the transformer's run: notes how many samples it has seen")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "loras": {arguments.lora: 1.0} if arguments.lora else None,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    seen = samples_seen(arguments.run) if arguments.run else {}
    painter = Painter(arguments.data, torch.device("cpu"))
    detector = Detector(painter.bank)
    count, canvas, seed = arguments.prompts_per_category, arguments.size, arguments.seed
    cases = draw_cases(arguments.categories, count, canvas, seed)
    errors = detector_error(cases, painter, detector, seed)
    pictures = drawn(arguments.model, cases, canvas, seed, options)
    right = judged(cases, pictures, detector)
    table = scores(cases, right)
    distance = frechet_distance(features(pictures), features(rendered(cases, painter, seed)))
    print_table(table, errors)
    print(f"Fréchet distance from rendered scenes: {distance:.2f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {
        "settings": {"model": arguments.model, "size": list(canvas), "seed": seed, **options, **seen},
        "scores": table,
        "detector_error": errors,
        "frechet_distance": distance,
        "samples": [
            {"category": c.category, "prompt": c.prompt, "negative_prompt": c.negative_prompt, "right": ok}
            for c, ok in zip(cases, right, strict=True)
        ],
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    contact_sheet(cases, pictures, right).save(arguments.out / "sheet.png")


if __name__ == "__main__":
    main()
