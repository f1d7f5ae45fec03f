"""What a PNG file says about how it was made."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from PIL import Image

from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request.output_formats import PNG
from triptych_coordinator.request.parameters import Composition, Lora, Parameters, WeightedPrompt
from triptych_coordinator.request.record import record_text
from triptych_coordinator.request.writing import parameters_to_message
from triptych_coordinator.sampling.guidance.layers import PerturbedAttentionGuidance, SkipLayerGuidance
from triptych_coordinator.sampling.guidance.methods import AdaptiveProjectedGuidance
from triptych_coordinator.sampling.guidance.schedules import (
    ConstantGuidance,
    ExplicitGuidance,
    IntervalGuidance,
)
from triptych_coordinator.sampling.reuse.branches import GuidanceReuse
from triptych_coordinator.sampling.reuse.step_reuse import NoReuse
from triptych_coordinator.sampling.sigma_schedules import CheckpointSigmas, ExplicitSigmas, KarrasSigmas
from triptych_coordinator.sampling.solvers import SOLVERS
from triptych_coordinator.sampling.solvers.runge_kutta import EulerSolver, HeunSolver
from triptych_coordinator.sampling.solvers.stochastic import EulerAncestralSolver

FINGERPRINTS = {"text_encoder": {"t"}, "denoiser": {"d2", "d1"}, "vae_codec": {"v"}}


def parameters(
    prompt: str,
    negative_prompt: str = "",
    **chosen: Any,
) -> Parameters:
    usual = Parameters(
        model="triptych-small",
        prompts=("another", prompt),
        negative_prompts=("", negative_prompt),
        height=128,
        width=96,
        num_inference_steps=28,
        guidance_scale=5.0,
        guidance_schedule=ConstantGuidance(),
        num_images_per_prompt=2,
        seeds=(1, 2, 3, 2**64 - 1),
        solver=EulerSolver(),
        sigma_schedule=CheckpointSigmas(),
        step_reuse=NoReuse(),
        loras=(),
    )
    return replace(usual, **chosen)


def read_back(text: dict[str, str]) -> dict[str, str]:
    png = PNG.encode(np.zeros((2, 3, 3), np.uint8), text)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.load()
        return {str(keyword): str(value) for keyword, value in image.info.items()}


def test_a_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with Image.open(io.BytesIO(PNG.encode(pixels, {})), formats=["PNG"]) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_other_tools_read_the_parameters() -> None:
    text = record_text(parameters("a zebra, left", "blurry"), 2, FINGERPRINTS)["parameters"]
    prompt, negative, settings = text.split("\n")
    assert prompt == "a zebra, left"
    assert negative == "Negative prompt: blurry"
    assert settings.startswith(
        "Steps: 28, Sampler: Euler, CFG scale: 5, Seed: 3, Size: 96x128, Model: triptych-small, Version: "
    )


def test_without_a_negative_prompt_the_parameters_have_no_line_for_it() -> None:
    assert "Negative prompt" not in record_text(parameters("a zebra"), 2, FINGERPRINTS)["parameters"]


def test_a_guidance_schedule_is_quoted_in_the_parameters() -> None:
    schedule = IntervalGuidance(0.1, 0.7)
    text = record_text(parameters("a zebra", guidance_schedule=schedule), 2, FINGERPRINTS)["parameters"]
    assert r', CFG schedule: "{\"interval\": {\"start\": 0.1, \"stop\": 0.7}}", Version: ' in text


def test_solvers_and_schedules_have_the_names_that_other_tools_know() -> None:
    chosen = parameters("a zebra", solver=EulerAncestralSolver(0.5), sigma_schedule=KarrasSigmas())
    text = record_text(chosen, 2, FINGERPRINTS)["parameters"]
    assert "Sampler: Euler a, Schedule type: Karras, Eta: 0.5, " in text


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_has_a_name_in_the_parameters(solver: str) -> None:
    text = record_text(parameters("a zebra", solver=SOLVERS[solver]()), 2, FINGERPRINTS)["parameters"]
    assert f"Sampler: {SOLVERS[solver].label}, " in text


def test_sampling_is_in_the_json() -> None:
    chosen = parameters(
        "a zebra", solver=HeunSolver(), sigma_schedule=ExplicitSigmas((1.0, 0.5)), step_reuse=GuidanceReuse()
    )
    text = record_text(chosen, 2, FINGERPRINTS)
    record = json.loads(text["triptych"])
    assert record["solver"] == {"heun": {}}
    assert record["sigma_schedule"] == {"explicit": {"sigmas": [1.0, 0.5, 0.0]}}
    assert record["step_reuse"] == {"guidance": {"every": 2}}
    assert r'Step reuse: "{\"guidance\": {\"every\": 2}}"' in text["parameters"]


def test_loras_are_named_with_their_weights() -> None:
    drawn = replace(parameters("a zebra"), loras=(Lora("ink", 0.8), Lora("oil, thick", -1.0)))
    text = record_text(drawn, 2, FINGERPRINTS)
    assert text["parameters"].startswith("a zebra <lora:ink:0.8> <lora:oil, thick:-1>\nSteps: ")
    assert json.loads(text["triptych"])["loras"] == [
        {"name": "ink", "weight": 0.8},
        {"name": "oil, thick", "weight": -1.0},
    ]


def test_the_json_gives_this_picture_alone() -> None:
    record = json.loads(record_text(parameters("a zebra", "blurry"), 3, FINGERPRINTS)["triptych"])
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
    text = record_text(parameters(prompt, prompt), 2, FINGERPRINTS)
    assert read_back(text) == text
    assert json.loads(read_back(text)["triptych"])["prompt"] == prompt


def test_the_guidance_that_was_chosen_is_recorded_as_a_request_has_it() -> None:
    chosen = parameters(
        "a zebra",
        guidance_method=AdaptiveProjectedGuidance(0.3, 15.0, -0.5),
        guidance_rescale=0.7,
        skip_layer_guidance=SkipLayerGuidance((1, 2)),
        perturbed_attention_guidance=PerturbedAttentionGuidance((0,), 0.7),
        compositions=(
            Composition(1.0, (WeightedPrompt("fog"),)),
            Composition(0.9, (WeightedPrompt("a red hat", -0.3),)),
        ),
    )
    text = record_text(chosen, 2, FINGERPRINTS)
    record = json.loads(text["triptych"])
    fields = ("guidance_method", "guidance_rescale", "skip_layer_guidance",
              "perturbed_attention_guidance", "compositions")  # fmt: skip
    message = ParseDict({field: record[field] for field in fields}, GenerationParameters())
    expected = parameters_to_message(chosen.alone(2))
    for field in {name for name in expected.DESCRIPTOR.fields_by_name if name not in fields}:
        expected.ClearField(field)  # type: ignore[arg-type]
    assert message == expected
    assert ', CFG rescale: 0.7, Skip layer guidance: "{' in text["parameters"]


def test_an_explicit_schedule_stands_for_the_scale() -> None:
    schedule = ExplicitGuidance((7.0, 1.0))
    text = record_text(parameters("a zebra", guidance_schedule=schedule), 2, FINGERPRINTS)
    record = json.loads(text["triptych"])
    assert record["guidance_schedule"] == {"explicit": {"scales": [7.0, 1.0]}}
    assert "guidance_scale" not in record
    assert "CFG scale" not in text["parameters"]
