"""Pictures of prompts by the coordinator's own sampling, with all stages in this process."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.scenes import Canvas

BATCH = 8  # pictures in one request


@dataclass(frozen=True)
class Prompt:
    """What is asked for, and what is not wanted."""

    text: str
    negative: str = ""


def requests(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Neighbours with the same negative prompt, at most BATCH together."""
    for _, group in groupby(prompts, key=lambda prompt: prompt.negative):
        alike = list(group)
        yield from (alike[start : start + BATCH] for start in range(0, len(alike), BATCH))


def draw(
    model: str, prompts: Sequence[Prompt], canvas: Canvas, seed: int, options: Mapping[str, Any]
) -> Tensor:
    """uint8 [prompts, height, width, 3]; picture k has the seed seed + k."""
    return asyncio.run(_draw(model, prompts, canvas, seed, options))


async def _draw(
    model: str, prompts: Sequence[Prompt], canvas: Canvas, seed: int, options: Mapping[str, Any]
) -> Tensor:
    from triptych_local.running.fused import fused_client
    from triptych_local.running.settings import ModelChoice

    pictures: list[Tensor] = []
    started = time.monotonic()
    async with fused_client(ModelChoice(model=model)) as client:
        for batch in requests(prompts):
            first = seed + len(pictures)
            generation = await client.generate(
                [prompt.text for prompt in batch],
                negative_prompt=batch[0].negative,
                seeds=list(range(first, first + len(batch))),
                height=canvas[0],
                width=canvas[1],
                **options,
            )
            for image in sorted(generation.images, key=lambda image: image.index):
                pixels = np.array(Image.open(io.BytesIO(image.png)).convert("RGB"))
                pictures.append(torch.from_numpy(pixels))
            seconds = time.monotonic() - started
            print(f"\r{len(pictures)} of {len(prompts)} pictures, {seconds:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return torch.stack(pictures)
