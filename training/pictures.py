"""What the transformer's training draws its batches from: plans of scenes with their captions' tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from training.canvases import CANVASES, SQUARE_SHARE, tokens
from training.captions import caption
from training.linear_codec import LinearCodec
from training.plans import Plan, plan_of
from training.rendering import render
from training.scenes import Canvas, Split, sample_scene
from training.sprites import SpriteBank

ROUNDED_TO = 8  # rows of a batch


@dataclass
class PictureBatch:
    """Scenes of one canvas, and int64 [rows, tokens] of their captions for each tokenizer."""

    plan: Plan
    ids: list[Tensor]


class PictureBatches(IterableDataset[PictureBatch]):
    """Endless batches of about the same number of image tokens; each worker process has its own.

    levels: share of the batches by CANVASES' keys; `rows`: of a batch at 128 x 128 pixels; `unconditional`:
    share of captions that are dropped; `usual`: share of scenes whose things are where they mostly are.
    """

    def __init__(
        self,
        model: Path,
        levels: Mapping[int, float],
        rows: int,
        unconditional: float,
        seed: int,
        usual: float = 0.0,
    ) -> None:
        self.model, self.levels, self.rows, self.seed = model, dict(levels), rows, seed
        self.unconditional, self.usual = unconditional, usual

    def __iter__(self) -> Iterator[PictureBatch]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, 0 if worker is None else worker.id))
        tokenizers = [CLIPTokenizer.from_pretrained(self.model / n) for n in ("tokenizer", "tokenizer_2")]
        while True:
            yield self.batch(self.sample_canvas(rng), rng, tokenizers)

    def sample_canvas(self, rng: np.random.Generator) -> Canvas:
        """A level by its share, then a shape: the square one half of the time."""
        level = int(rng.choice(list(self.levels), p=list(self.levels.values())))
        square, *others = CANVASES[level]
        return square if rng.random() < SQUARE_SHARE else others[int(rng.integers(len(others)))]

    def batch(
        self,
        canvas: Canvas,
        rng: np.random.Generator,
        tokenizers: list[CLIPTokenizer],
        split: Split = "train",
    ) -> PictureBatch:
        """Scenes of the split on the canvas, as many as the rows at 128 x 128 have tokens."""
        share = tokens((128, 128)) / tokens(canvas)
        rows = max(ROUNDED_TO * round(self.rows * share / ROUNDED_TO), 1)
        scenes = [sample_scene(rng, canvas, split, self.usual) for _ in range(rows)]
        dropped = rng.random(rows) < self.unconditional
        texts = ["" if drop else caption(s, rng).text for s, drop in zip(scenes, dropped, strict=True)]
        ids = [
            t(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids for t in tokenizers
        ]
        return PictureBatch(plan_of(scenes, rng), ids)


def painted(bank: SpriteBank, count: int, canvas: Canvas, split: Split, rng: np.random.Generator) -> Tensor:
    """Scenes of a split by lot: uint8 [count, height, width, 3]."""
    plan = plan_of([sample_scene(rng, canvas, split) for _ in range(count)], rng)
    return render(plan.to(bank.device), bank).to(torch.uint8)


class Painter:
    """Plans to pictures and latents, on a device."""

    def __init__(self, data: Path, device: torch.device) -> None:
        codec = LinearCodec.load()
        self.bank = SpriteBank(data, device)
        self.codec = LinearCodec(
            codec.mean.to(device),
            codec.analysis.to(device),
            codec.synthesis.to(device),
            codec.scaling_factor,
            codec.shift_factor,
        )

    @torch.no_grad()
    def latents(self, plan: Plan) -> Tensor:
        """Float32 [rows, 16, height / 8, width / 8], as the VAE's encoder gives them."""
        return self.codec.encode(render(plan, self.bank))
