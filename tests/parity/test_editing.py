"""Image-to-image and inpainting against diffusers' pipelines: the same pictures from the same seeds."""

import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from numpy.typing import NDArray
from PIL import Image

from tests.tiny_checkpoint import write_tiny_checkpoint
from triptych.client import AsyncClient
from triptych_local.running.fused import fused_client
from triptych_local.running.settings import ModelChoice

RNG = np.random.default_rng(0)
SEEDS = (3, 11)
PROMPT, NEGATIVE = "a cat", "a dog"
WIDTH, HEIGHT = 80, 64


def smooth(width: int, height: int) -> Image.Image:
    """A picture with some structure: random colours, enlarged."""
    small = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


PICTURE, LARGE = smooth(WIDTH, HEIGHT), smooth(2 * WIDTH, 2 * HEIGHT)
MASK = Image.new("L", (WIDTH, HEIGHT), 0)
MASK.paste(255, (21, 10, 62, 64))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 16 latent channels: diffusers' inpainting takes no others."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "sixteen", latent_channels=16)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusion3Pipeline:
    loaded = StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
async def client(folder: Path) -> AsyncIterator[AsyncClient]:
    async with fused_client(ModelChoice(model=str(folder))) as client:
        yield client


async def ours(client: AsyncClient, **options: Any) -> list[NDArray[np.int_]]:
    generation = await client.generate(
        PROMPT,
        negative_prompt=NEGATIVE,
        seeds=SEEDS,
        num_images_per_prompt=len(SEEDS),
        guidance_scale=4.0,
        **options,
    )
    return [np.asarray(Image.open(io.BytesIO(image.png))).astype(int) for image in generation.images]


def theirs(pipeline: StableDiffusion3Pipeline, kind: type[Any], **options: Any) -> list[NDArray[np.int_]]:
    """The pictures of a pipeline of the same parts, from its latents.

    The inpainting pipeline forgets the VAE's shift when it decodes; all latents are decoded here, as the
    text-to-image pipeline does it.
    """
    edit = kind(**pipeline.components)
    edit.set_progress_bar_config(disable=True)
    latents = edit(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_images_per_prompt=len(SEEDS),
        guidance_scale=4.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        output_type="latent",
        width=WIDTH,
        height=HEIGHT,
        **options,
    ).images
    vae = pipeline.vae
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    pictures = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return [(picture * 255).round().astype(int) for picture in pictures]


def furthest(a: Sequence[NDArray[np.int_]], b: Sequence[NDArray[np.int_]]) -> int:
    return max(int(np.abs(one - other).max()) for one, other in zip(a, b, strict=True))


@pytest.mark.parametrize("strength", [0.3, 0.6, 0.85, 1.0])
async def test_image_to_image(
    client: AsyncClient, pipeline: StableDiffusion3Pipeline, strength: float
) -> None:
    options: dict[str, Any] = {"strength": strength, "num_inference_steps": 7}
    reference = theirs(pipeline, StableDiffusion3Img2ImgPipeline, image=[PICTURE] * len(SEEDS), **options)
    made = await ours(client, image=png(PICTURE), **options)
    assert furthest(made, reference) <= 1
    assert furthest(made[:1], made[1:]) > 10  # each from its own seed


async def test_a_larger_picture_is_scaled_in_the_same_way(
    client: AsyncClient, pipeline: StableDiffusion3Pipeline
) -> None:
    options: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 4}
    reference = theirs(pipeline, StableDiffusion3Img2ImgPipeline, image=[LARGE] * len(SEEDS), **options)
    assert furthest(await ours(client, image=png(LARGE), width=WIDTH, **options), reference) <= 1


@pytest.mark.parametrize("strength", [0.6, 1.0])
async def test_inpainting(client: AsyncClient, pipeline: StableDiffusion3Pipeline, strength: float) -> None:
    options: dict[str, Any] = {"strength": strength, "num_inference_steps": 7}
    reference = theirs(
        pipeline,
        StableDiffusion3InpaintPipeline,
        image=[PICTURE] * len(SEEDS),
        mask_image=[MASK] * len(SEEDS),
        **options,
    )
    assert (
        furthest(
            await ours(client, image=png(PICTURE), mask=png(MASK), read_as_diffusers=True, **options),
            reference,
        )
        <= 1
    )


async def test_given_noise(client: AsyncClient, pipeline: StableDiffusion3Pipeline) -> None:
    from triptych.tensors import array_to_message
    from triptych.v1 import editing_pb2

    noise = RNG.standard_normal((2, 16, HEIGHT // 8, WIDTH // 8), np.float32)
    reference = theirs(
        pipeline, StableDiffusion3Pipeline, latents=torch.from_numpy(noise), num_inference_steps=4
    )
    latents = editing_pb2.InitialLatents(noise=array_to_message(noise))
    assert furthest(await ours(client, latents=latents, num_inference_steps=4), reference) <= 1
