"""The model that ships inside is an ordinary SD3 checkpoint: diffusers makes the same pictures from it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from triptych.checkpoints.opening import open_checkpoint
from triptych_local.running.fused import fused_client
from triptych_local.running.settings import ModelChoice

LORA = "four-steps"
PROMPT = "a zebra to the left of a fire truck on a light blue background"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    """diffusers' own pipeline of the default model, in float32."""
    folder = Path(open_checkpoint("triptych-small").path)
    loaded = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize(
    ("height", "width", "guidance_scale"), [(128, 128, 3.0), (96, 192, 7.0), (128, 128, 1.0)]
)
async def test_diffusers_makes_the_same_picture(
    pipeline: StableDiffusion3Pipeline, height: int, width: int, guidance_scale: float
) -> None:
    theirs = pipeline(
        PROMPT,
        negative_prompt="a cactus",
        height=height,
        width=width,
        num_inference_steps=8,
        guidance_scale=guidance_scale,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).images[0]
    async with fused_client(ModelChoice(model="triptych-small")) as client:
        ours = await client.generate(
            PROMPT,
            negative_prompt="a cactus",
            height=height,
            width=width,
            num_inference_steps=8,
            guidance_scale=guidance_scale,
            seed=7,
        )
    pixels = np.asarray(Image.open(io.BytesIO(ours.images[0].png))).astype(int)
    assert np.abs(pixels - (theirs * 255).round().astype(int)).max() <= 1


async def test_its_lora_needs_four_steps_and_no_guidance_as_in_diffusers(
    pipeline: StableDiffusion3Pipeline,
) -> None:
    """And without being told so."""
    async with fused_client(ModelChoice(model="triptych-small")) as client:
        model = await client.model()
        ours = await client.generate(PROMPT, seed=7, loras={LORA: 1.0})
    assert (list(model.loras), dict(model.distilling_loras)) == ([LORA], {LORA: 4})
    picture = Image.open(io.BytesIO(ours.images[0].png))
    record = json.loads(picture.info["triptych"])
    assert (record["num_inference_steps"], record["guidance_scale"]) == (4, 1.0)
    pipeline.load_lora_weights(
        Path(open_checkpoint("triptych-small").path) / "loras", weight_name=f"{LORA}.safetensors"
    )
    theirs = pipeline(
        PROMPT,
        height=128,
        width=128,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).images[0]
    pipeline.unload_lora_weights()
    assert np.abs(np.asarray(picture).astype(int) - (theirs * 255).round().astype(int)).max() <= 1
