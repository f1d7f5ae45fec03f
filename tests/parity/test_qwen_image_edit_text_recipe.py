"""Qwen-Image-Edit's text recipes give what diffusers' encode_prompt gives, for folders that it saved."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.parity.text import assert_close, load
from tests.qwen_processor import save
from tests.tiny_qwen_image import WIDTH, qwen_image_edit_pipeline
from triptych.errors import CheckpointError
from triptych_text_encoder.encoding import Picture


@pytest.fixture(scope="module", params=[False, True], ids=["Edit", "Edit-Plus"])
def plus(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def folder(plus: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save(qwen_image_edit_pipeline(plus), folder)
    return folder


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


@torch.no_grad()
def encode(reference: Any, prompt: str, pictures: list[NDArray[np.uint8]]) -> torch.Tensor:
    images = [Image.fromarray(each) for each in pictures]
    shown = images if "Plus" in type(reference).__name__ else images[0]
    sequences, _ = reference.encode_prompt(prompt, image=shown, device="cpu")
    return sequences[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("prompt", ["", "make it red", "a red cat é日本 " * 20])
@pytest.mark.parametrize("sizes", [[(96, 128)], [(64, 96), (128, 32)]], ids=["one", "two"])
def test_pictures_are_seen_as_transformers_sees_them(
    sizes: list[tuple[int, int]], prompt: str, plus: bool, folder: Path
) -> None:
    """Its processor brings them to multiples of 28 pixels: none of these has such a size."""
    pictures = [pixels(*size) for size in sizes]
    if len(pictures) > 1 and not plus:
        pytest.skip("it sees one picture")
    recipe = load(folder)
    assert (recipe.max_images, recipe.joint_attention_dim) == (3 if plus else 1, WIDTH)
    ours = recipe.encode(prompt, [Picture(each, b"") for each in pictures])

    assert_close(ours.sequence, encode(qwen_image_edit_pipeline(plus), prompt, pictures))
    assert ours.reference_positions == ()
    assert len(ours.sequence) <= recipe.tokens


def test_slots_have_three_positions_which_diffusers_forgets_under_transformers_5(
    plus: bool, folder: Path
) -> None:
    """What it forgets makes a difference: where this fails, diffusers tells them (see the tiny pipeline)."""
    reference, picture = qwen_image_edit_pipeline(plus), pixels(96, 128)
    del reference.text_encoder.forward  # that tells them
    forgotten = encode(reference, "make it red", [picture])
    ours = load(folder).encode("make it red", [Picture(picture, b"")]).sequence
    assert ours.shape == forgotten.shape
    assert ((ours - forgotten).abs().max() / forgotten.abs().max()).item() > 1e-3


def test_the_end_of_a_very_long_prompt_is_not_read(folder: Path) -> None:
    encoding = load(folder).encode("a red cat " * 150 + "and a dog", [Picture(pixels(64, 64), b"")])
    assert encoding.truncated.endswith("and a dog")


@pytest.mark.parametrize("lacking", ["processor/preprocessor_config.json", "text_encoder's eyes"])
def test_a_checkpoint_that_sees_nothing_is_refused(lacking: str, folder: Path, tmp_path: Path) -> None:
    blind = tmp_path / "checkpoint"
    shutil.copytree(folder, blind)
    if lacking.startswith("processor"):
        (blind / lacking).unlink()
    else:
        config = blind / "text_encoder/config.json"
        config.write_text(config.read_text().replace("vision_config", "no_config"))
    with pytest.raises(CheckpointError, match="has no vision encoder, or no image processor"):
        load(blind)
