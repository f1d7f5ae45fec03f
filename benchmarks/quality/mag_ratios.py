"""Measures the ratios that MagCache needs of a model, for the `mag_ratios` of its triptych.json.

    python -m benchmarks.quality.mag_ratios --model FOLDER "a zebra" "two cups of tea on a table"

Draws a picture of each prompt with every layer computed, and prints how large what the layers add to a
picture's tokens is at each step, relative to the step before: the mean over tokens of the ratios of their
norms (diffusers.hooks.mag_cache, calibrate), and over prompts and branches. They hold for the number of steps
and, roughly, for others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks import command_line
from benchmarks.sample_sheet import PROMPTS
from training.folder import write_settings
from triptych.client import AsyncClient
from triptych.compute.kernels import configure_math_libraries
from triptych.serving.settings import with_environment
from triptych.v1 import sampling_pb2
from triptych_denoiser.features import FeatureCache, Features, Key
from triptych_local.running.direct import DirectStub
from triptych_local.running.fused import load_fused
from triptych_local.running.settings import FusedSettings, ModelChoice

EVERYTHING = sampling_pb2.StepReuse(magcache=sampling_pb2.MagCache(retention_ratio=1, mag_ratios=[1]))
"""Computes every step, and has what the layers add remembered."""


class RecordedFeatures(FeatureCache):
    """Remembers the norms of what all layers added to each token, by what its rows attend to."""

    def __init__(self) -> None:
        super().__init__(1)
        self.norms: dict[object, list[torch.Tensor]] = {}

    def put(self, key: Key, value: Features) -> None:
        """A row's features, step after step."""
        attended = key[2]
        self.norms.setdefault(attended, []).append((value.first + value.others).float().norm(dim=-1))


def ratios_of(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    """How large the norms [tokens] of each step are relative to the step before: [steps]."""
    ratios = [(now / before).mean() for before, now in pairwise(norms)]
    return torch.stack([torch.tensor(1.0), *ratios])


async def measure(choice: ModelChoice, prompts: Sequence[str], steps: int) -> list[float]:
    """The ratios of each step."""
    fused, found = await load_fused(with_environment(FusedSettings, choice.pinned())), []
    client = AsyncClient.from_stub(cast(Any, DirectStub(fused.coordinator)))
    try:
        for seed, prompt in enumerate(prompts):
            recorded = fused.denoiser._predictor.features = RecordedFeatures()
            options: dict[str, Any] = {"num_inference_steps": steps} if steps else {}
            await client.generate(prompt, seed=seed, step_reuse=EVERYTHING, **options)
            found += [ratios_of(norms) for norms in recorded.norms.values()]
    finally:
        await fused.close()
    return [round(ratio, 5) for ratio in torch.stack(found).mean(dim=0).tolist()]


def main() -> None:
    """Measures and prints."""
    parser = command_line.parser(__doc__)
    parser.add_argument("prompts", nargs="*", help="default: those of the README's pictures")
    parser.add_argument("--steps", type=int, default=0, help="default: the model's")
    parser.add_argument("--write", action="store_true", help="into the triptych.json of --model, a folder")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument(
        "--dtype", default="float32", help="default: float32", choices=("float32", "bfloat16", "float16")
    )
    arguments = parser.parse_args()
    configure_math_libraries()
    prompts = arguments.prompts or list(PROMPTS)
    choice = ModelChoice(model=arguments.model, device=arguments.device, dtype=arguments.dtype)
    ratios = asyncio.run(measure(choice, prompts, arguments.steps))
    print(json.dumps({"mag_ratios": ratios}))
    command_line.write_json(arguments.out, ratios)
    if arguments.write:
        write_settings(Path(arguments.model), {"mag_ratios": ratios})


if __name__ == "__main__":
    main()
