"""The same request gives the same bits: in one process or over sockets, alone or in company."""

import asyncio
import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.denoiser.loras import random_lora, written
from tests.local.conftest import Up, run, running_up
from triptych.client import AsyncClient

PICTURES = ("generate", "a cat", "a red dog", "--seed", "7", "--steps", "3", "--size", "64x48")


def generated(folder: Path, *arguments: str | Path, environment: dict[str, str] | None = None) -> list[bytes]:
    """The bytes of the PNG files that the command writes, in order."""
    folder.mkdir()
    result = run(*arguments, "-o", folder / "out.png", environment=environment)
    assert result.status == 0, result.stderr
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def split(up: Up, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """PICTURES as four processes make them."""
    pictures = generated(tmp_path_factory.mktemp("split") / "files", *PICTURES, environment=up.environment)
    assert len(pictures) == len(set(pictures)) == 2
    return pictures


def test_split_and_fused_give_the_same_bits(
    split: list[bytes], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    assert generated(tmp_path / "fused", *PICTURES, "--fused", "--model", tiny_checkpoint) == split


def test_up_fused_gives_the_same_bits(split: list[bytes], tmp_path: Path, tiny_checkpoint: Path) -> None:
    with running_up(tmp_path / "run", "--fused", "--model", tiny_checkpoint) as up:
        assert list(up.services()) == ["triptych_local.running.fused"]
        assert generated(tmp_path / "fused", *PICTURES, environment=up.environment) == split


def test_services_started_for_one_command_give_the_same_bits(
    split: list[bytes], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    assert generated(tmp_path / "alone", *PICTURES, "--model", tiny_checkpoint) == split


def test_loras_give_the_same_bits_in_one_process_and_in_several(
    split: list[bytes], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """One that changes a text encoder too, in a folder of the folder."""
    (tmp_path / "loras/style").mkdir(parents=True)
    encoder = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    text = {f"{encoder}.lora_A.weight": torch.ones(1, 16), f"{encoder}.lora_B.weight": torch.ones(32, 1)}
    written(tmp_path / "loras/style/ink.safetensors", random_lora(1) | text | {"odd.diff": torch.ones(1)})
    written(tmp_path / "loras/plain.safetensors", random_lora(1))
    environment = os.environ | {"TRIPTYCH_LORA_FOLDER": str(tmp_path / "loras")}
    drawn = (*PICTURES, "--model", tiny_checkpoint, "--lora")

    alone = generated(tmp_path / "alone", *drawn, "style/ink=0.8", environment=environment)

    result = run(*drawn, "style/ink=0.8", "--fused", "-o", tmp_path / "out.png", environment=environment)
    assert [path.read_bytes() for path in sorted(tmp_path.glob("out*.png"))] == alone
    said = "fit nothing in the transformer and are not applied, such as odd.diff"
    assert f"warning: the LoRA 'style/ink': 1 of its 5 tensors {said}" in result.stderr
    others = generated(tmp_path / "plain", *drawn, "plain=0.8", "--fused", environment=environment)
    pixels = [[decoded(png) for png in pictures] for pictures in (alone, others, split)]
    assert all(len(set(three)) == 3 for three in zip(*pixels, strict=True))


def test_reused_features_give_the_same_bits_with_any_cache(
    up: Up, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """And that the option does something is seen by the pixels."""
    drawn = (*PICTURES[:-4], "--steps", "12", "--size", "64x48")
    reusing = (*drawn, "--step-reuse", "features:0.5")
    whole = generated(tmp_path / "whole", *drawn, environment=up.environment)
    pictures = generated(tmp_path / "split", *reusing, environment=up.environment)
    forgetful = os.environ | {"TRIPTYCH_FEATURE_CACHE_MB": "1", "TRIPTYCH_MAX_BATCH_ROWS": "1"}

    again = generated(
        tmp_path / "fused", *reusing, "--fused", "--model", tiny_checkpoint, environment=forgetful
    )

    assert again == pictures
    assert all(decoded(one) != decoded(other) for one, other in zip(pictures, whole, strict=True))


def decoded(png: bytes) -> bytes:
    """The pixels of a PNG file."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        return picture.tobytes()


def test_a_batch_of_four_is_four_single_pictures(up: Up, tmp_path: Path) -> None:
    request = ("generate", "a cat", "--steps", "3")
    batch = generated(
        tmp_path / "batch", *request, "--seed", "7", "--num-images", "4", environment=up.environment
    )
    singles = [
        generated(tmp_path / str(seed), *request, "--seed", str(seed), environment=up.environment)[0]
        for seed in range(7, 11)
    ]
    assert len(set(batch)) == 4
    assert batch == singles


async def test_requests_of_several_sizes_and_steps_at_once_give_what_they_give_alone(up: Up) -> None:
    sizes, steps = [(64, 64), (48, 64), (96, 48), (64, 64), (32, 32)], [5, 7, 4, 3, 9]
    client = AsyncClient(up.coordinator())

    async def pixels(size: tuple[int, int], num_inference_steps: int) -> bytes:
        height, width = size
        generation = await client.generate(
            "a cat", height=height, width=width, num_inference_steps=num_inference_steps, seed=7
        )
        return decoded(generation.images[0].png)

    alone = [await pixels(*asked) for asked in zip(sizes, steps, strict=True)]
    at_once = await asyncio.gather(*map(pixels, sizes, steps))
    await client.close()

    assert at_once == alone
    assert len(set(alone)) == len(sizes)
