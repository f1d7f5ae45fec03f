"""PNG files and what they say about themselves."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from PIL import Image

from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.request.guidance_messages import write_options
from triptych_coordinator.request.guidance_options import Composition, GuidanceOptions
from triptych_coordinator.request.parameters import Lora, Parameters
from triptych_coordinator.request.png import encode_png, png_text
from triptych_coordinator.request.sampling_options import Choice, SamplingOptions
from triptych_coordinator.sampling.guidance import (
    AdaptiveProjected,
    GuidanceSchedule,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.solvers import SOLVERS

FINGERPRINTS = {"text_encoder": {"t"}, "denoiser": {"d2", "d1"}, "vae_codec": {"v"}}


def parameters(
    prompt: str,
    negative_prompt: str = "",
    schedule: GuidanceSchedule | None = None,
    sampling: SamplingOptions | None = None,
    guidance: GuidanceOptions | None = None,
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
        sampling=sampling or SamplingOptions(),
        guidance=guidance or GuidanceOptions(),
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


def test_solvers_and_schedules_have_the_names_that_other_tools_know() -> None:
    sampling = SamplingOptions(Choice("euler_ancestral", {"eta": 0.5}), Choice("karras", {"rho": 7.0}))
    text = png_text(parameters("a zebra", sampling=sampling), 2, FINGERPRINTS)["parameters"]
    assert "Sampler: Euler a, Schedule type: Karras, Eta: 0.5, " in text


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_has_a_name_in_the_parameters(solver: str) -> None:
    sampling = SamplingOptions(Choice(solver))
    assert "Sampler: " in png_text(parameters("a zebra", sampling=sampling), 2, FINGERPRINTS)["parameters"]


def test_sampling_is_in_the_json() -> None:
    reuse = Choice("guidance", {"every": 2})
    sampling = SamplingOptions(Choice("heun"), Choice("explicit", {"sigmas": (1.0, 0.5, 0.0)}), reuse)
    text = png_text(parameters("a zebra", sampling=sampling), 2, FINGERPRINTS)
    record = json.loads(text["triptych"])
    assert record["solver"] == {"heun": {}}
    assert record["sigma_schedule"] == {"explicit": {"sigmas": [1.0, 0.5, 0.0]}}
    assert record["step_reuse"] == {"guidance": {"every": 2}}
    assert r'Step reuse: "{\"guidance\": {\"every\": 2}}"' in text["parameters"]


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
    assert record.pop("request")["seeds"] == [str(2**64 - 1)]
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
        "solver": {"euler": {}},
        "sigma_schedule": {"checkpoint": {}},
        "step_reuse": {"none": {}},
        "loras": [],
        "fingerprints": {"text_encoder": ["t"], "denoiser": ["d1", "d2"], "vae_codec": ["v"]},
    }


@pytest.mark.parametrize(
    "prompt", ["plain", "déjà vu", "斑马在消防车左边", "🦓\nNegative prompt: no", 'a "b", c: d']
)
def test_any_text_survives(prompt: str) -> None:
    text = png_text(parameters(prompt, prompt), 2, FINGERPRINTS)
    assert read_back(text) == text
    assert json.loads(read_back(text)["triptych"])["prompt"] == prompt


def test_the_guidance_that_was_chosen_is_recorded_as_a_request_has_it() -> None:
    guidance = GuidanceOptions(
        AdaptiveProjected(0.3, 15.0, -0.5),
        0.7,
        SkipLayerGuidance((1, 2)),
        PerturbedAttentionGuidance((0,), 0.7),
        (Composition(("fog",), (1.0,)), Composition(("a red hat",), (-0.3,), 0.9)),
    )
    text = png_text(parameters("a zebra", guidance=guidance), 2, FINGERPRINTS)
    record = json.loads(text["triptych"])
    fields = ("guidance_method", "guidance_rescale", "skip_layer_guidance",
              "perturbed_attention_guidance", "compositions")  # fmt: skip
    message = ParseDict({field: record[field] for field in fields}, pb.GenerationParameters())
    expected = pb.GenerationParameters()
    write_options(replace(guidance, compositions=guidance.compositions[1:]), expected)
    assert message == expected
    assert ', CFG rescale: 0.7, Skip layer guidance: "{' in text["parameters"]


def test_an_explicit_schedule_stands_for_the_scale() -> None:
    schedule = GuidanceSchedule("explicit", {"scales": (7.0, 1.0)})
    text = png_text(parameters("a zebra", schedule=schedule), 2, FINGERPRINTS)
    record = json.loads(text["triptych"])
    assert record["guidance_schedule"] == {"explicit": {"scales": [7.0, 1.0]}}
    assert "guidance_scale" not in record
    assert "CFG scale" not in text["parameters"]
