"""PNG files and what they say about themselves."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from triptych_coordinator.guidance import GuidanceSchedule
from triptych_coordinator.images import encode_png, png_text
from triptych_coordinator.requests import Lora, Parameters

FINGERPRINTS = {"text_encoder": {"t"}, "denoiser": {"d2", "d1"}, "vae_codec": {"v"}}


def parameters(
    prompt: str, negative_prompt: str = "", schedule: GuidanceSchedule | None = None
) -> Parameters:
    return Parameters(
        model="triptych-small",
        prompts=("another", prompt),
        negative_prompts=("", negative_prompt),
        height=128,
        width=96,
        num_inference_steps=28,
        guidance_scale=5.0,
        guidance_schedule=schedule or GuidanceSchedule(),
        num_images_per_prompt=2,
        seeds=(1, 2, 3, 2**64 - 1),
    )


def read_back(text: dict[str, str]) -> dict[str, str]:
    png = encode_png(np.zeros((2, 3, 3), np.uint8), text)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return {str(keyword): str(value) for keyword, value in image.info.items()}


def test_a_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels, {})), formats=["PNG"]) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_other_tools_read_the_parameters() -> None:
    text = png_text(parameters("a zebra, left", "blurry"), 2, FINGERPRINTS)["parameters"]
    prompt, negative, settings = text.split("\n")
    assert prompt == "a zebra, left"
    assert negative == "Negative prompt: blurry"
    assert settings.startswith(
        "Steps: 28, Sampler: Euler, CFG scale: 5, Seed: 3, Size: 96x128, Model: triptych-small, Version: "
    )


def test_without_a_negative_prompt_the_parameters_have_no_line_for_it() -> None:
    assert "Negative prompt" not in png_text(parameters("a zebra"), 2, FINGERPRINTS)["parameters"]


def test_a_guidance_schedule_is_quoted_in_the_parameters() -> None:
    schedule = GuidanceSchedule("interval", {"start": 0.1, "stop": 0.7})
    text = png_text(parameters("a zebra", schedule=schedule), 2, FINGERPRINTS)["parameters"]
    assert r', CFG schedule: "{\"interval\": {\"start\": 0.1, \"stop\": 0.7}}", Version: ' in text


def test_loras_are_named_with_their_weights() -> None:
    drawn = replace(parameters("a zebra"), loras=(Lora("ink", 0.8), Lora("oil, thick", -1.0)))
    text = png_text(drawn, 2, FINGERPRINTS)
    assert ', LoRAs: "ink=0.8, oil, thick=-1", Version: ' in text["parameters"]
    assert json.loads(text["triptych"])["loras"] == [
        {"name": "ink", "weight": 0.8},
        {"name": "oil, thick", "weight": -1.0},
    ]


def test_the_json_gives_this_picture_alone() -> None:
    record = json.loads(png_text(parameters("a zebra", "blurry"), 3, FINGERPRINTS)["triptych"])
    assert record.pop("version")
    assert record == {
        "model": "triptych-small",
        "prompt": "a zebra",
        "negative_prompt": "blurry",
        "seed": 2**64 - 1,
        "height": 128,
        "width": 96,
        "num_inference_steps": 28,
        "guidance_scale": 5.0,
        "guidance_schedule": {"constant": {}},
        "loras": [],
        "sampler": "Euler",
        "fingerprints": {"text_encoder": ["t"], "denoiser": ["d1", "d2"], "vae_codec": ["v"]},
    }


@pytest.mark.parametrize(
    "prompt", ["plain", "déjà vu", "斑马在消防车左边", "🦓\nNegative prompt: no", 'a "b", c: d']
)
def test_any_text_survives(prompt: str) -> None:
    text = png_text(parameters(prompt, prompt), 2, FINGERPRINTS)
    assert read_back(text) == text
    assert json.loads(read_back(text)["triptych"])["prompt"] == prompt
