"""What is saved by computing once what is the same in every step, and the memory that it takes.

    python -m benchmarks.speed.static_text

A Qwen-Image 2.1 transformer with random weights, narrower and shallower than the published one, makes a step
beside no, one and two references: with keys and values of text and references remembered, and computed anew.
Turns alternate, so that both meet the same company on the machine. Ends with 1 if the velocities differ in a
bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from triptych_denoiser.conditioning import Reference
from triptych_denoiser.features import FeatureCache
from triptych_denoiser.models.qwen_image21 import QwenImage21Transformer
from triptych_denoiser.models.transformer import Transformer
from triptych_denoiser.predictor import Predictor, StaticTexts, random_row
from triptych_denoiser.row import Row

CPU = torch.device("cpu")
CACHE_BYTES = 8 << 30


def small_transformer(width: int, layers: int) -> Transformer:
    """With random weights, heads as wide as the published one's."""
    torch.manual_seed(0)
    config = {"num_attention_heads": width // 128, "num_layers": layers, "context_in_dim": width}
    return QwenImage21Transformer.from_config(config).requires_grad_(False).eval()


def row_of(predictor: Predictor, size: int, references: int, tokens: int) -> Row:
    """A picture of size x size latent pixels beside a text and references as large."""
    generator = torch.Generator().manual_seed(references)
    row = random_row(predictor, size, size, tokens, 1, generator)
    channels = predictor.model.inputs.reference_channels
    pictures = tuple(
        Reference(torch.randn(channels, size, size, generator=generator)) for _ in range(references)
    )
    text = replace(row.conditioning, reference_positions=(tokens // 2,) * references)
    return replace(row, conditioning=text, references=pictures)


def measure(transformer: Transformer, size: int, references: int, tokens: int, steps: int) -> bool:
    """Prints a line. Whether both ways have the same bits."""
    predictors = [
        Predictor(
            *(transformer, CPU, torch.float32, 1, FeatureCache(1)),
            StaticTexts(nbytes, keeps_newest=False),
        )
        for nbytes in (CACHE_BYTES, 0)
    ]
    row = row_of(predictors[0], size, references, tokens)
    seconds: list[list[float]] = [[], []]
    same = True
    for step in range(steps + 1):
        velocities = []
        for taken, predictor in zip(seconds, predictors, strict=True):
            began = time.perf_counter()
            velocities.append(predictor.predict([replace(row, sigma=1 - step / (steps + 1))]).velocities[0])
            taken.append(time.perf_counter() - began)
        same = same and torch.equal(*velocities)
    remembered, anew = (statistics.median(taken[1:]) for taken in seconds)
    held = predictors[0].texts.held_bytes()
    kept = tokens + references * size**2
    print(
        f"{references} references: a step {remembered:.2f} s with what is remembered, {anew:.2f} s anew,"
        f" {anew / remembered:.2f} times as long; {held / 1e6:.1f} MB, {held / kept / 1024:.0f} KiB a token;"
        f" {'the same bits' if same else 'OTHER BITS'}"
    )
    return same


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=512, help="of a token, a multiple of 128")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="of the picture and each reference, in tokens")
    parser.add_argument("--tokens", type=int, default=128, help="of the text")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args(arguments)
    transformer = small_transformer(given.width, given.layers)
    same = [measure(transformer, given.size, n, given.tokens, given.steps) for n in (0, 1, 2)]
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
