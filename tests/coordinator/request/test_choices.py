"""The choices of a request are those of the proto, and come back as they were."""

from dataclasses import MISSING, fields
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st

from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request.choices import CHOICES, Wrong, plain, read, read_choice, write_field
from triptych_coordinator.request.parameters import Composition, Parameters, Variation, WeightedPrompt
from triptych_coordinator.sampling.guidance.layers import PerturbedAttentionGuidance, SkipLayerGuidance

REQUEST: Descriptor = GenerationParameters.DESCRIPTOR
KINDS = [(field, name, kind) for field, table in CHOICES.items() for name, kind in table.items()]
MESSAGES = (Composition, WeightedPrompt, Variation, SkipLayerGuidance, PerturbedAttentionGuidance)


def test_every_oneof_of_a_request_has_a_table_with_the_names_of_its_fields() -> None:
    oneofs = {
        field.name: set(field.message_type.fields_by_name)
        for field in REQUEST.fields
        if field.message_type and field.message_type.oneofs and field.name != "latents"
        if not all(oneof.name.startswith("_") for oneof in field.message_type.oneofs)
    }
    assert oneofs == {field: set(table) for field, table in CHOICES.items()}


@pytest.mark.parametrize(("field", "name", "kind"), KINDS)
def test_a_choice_has_the_name_and_the_fields_of_its_message(field: str, name: str, kind: type[Any]) -> None:
    message = REQUEST.fields_by_name[field].message_type.fields_by_name[name].message_type
    assert kind.__name__ == message.name
    assert {each.name for each in fields(kind)} == set(message.fields_by_name)


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_part_of_a_request_has_the_fields_of_its_message(kind: type[Any]) -> None:
    pool = REQUEST.file.pool
    message = pool.FindMessageTypeByName(f"triptych.v1.{kind.__name__}")
    assert {each.name for each in fields(kind)} == set(message.fields_by_name)


def test_every_field_of_a_request_is_one_of_the_parameters() -> None:
    # Parameters.edit and .noise
    started_from = {"image", "strength", "mask", "margins", "latents", "read_as_diffusers", "preserve"}
    ours = {field.name for field in fields(Parameters)} - {"edit", "noise"}
    assert ours == set(REQUEST.fields_by_name) - started_from


@pytest.mark.parametrize(("field", "name", "kind"), KINDS)
def test_what_nothing_is_said_of_has_its_default(field: str, name: str, kind: type[Any]) -> None:
    required = [each.name for each in fields(kind) if each.default is MISSING]
    message, wrong = GenerationParameters(), Wrong()
    getattr(getattr(message, field), name).SetInParent()
    choice = read_choice(message, field, None, wrong)
    assert type(choice) is kind
    if not required:
        assert choice == kind()
        assert wrong == {}


@given(number=st.floats(-10, 10, width=32), every=st.integers(2, 20))
def test_a_choice_comes_back_as_it_was(number: float, every: int) -> None:
    for field, name, values in (
        ("guidance_method", "adaptive_projected", {"eta": number, "norm_threshold": abs(number)}),
        ("step_reuse", "guidance", {"every": every}),
        ("guidance_schedule", "linear", {"end_scale": abs(number)}),
        ("guidance_schedule", "explicit", {"scales": (abs(number), 1.0)}),
        ("sigma_schedule", "explicit", {"sigmas": (1.0, abs(number) / 20 + 0.01)}),
    ):
        choice = CHOICES[field][name](**{key: _rounded(value) for key, value in values.items()})
        message, wrong = GenerationParameters(), Wrong()
        write_field(message, field, choice)
        assert read_choice(message, field, None, wrong) == choice
        assert plain(field, choice) == {
            name: {each.name: getattr(choice, each.name) for each in fields(choice)}
        }
        assert wrong == {}


def test_a_list_that_is_too_long_is_refused_before_it_is_read() -> None:
    message, wrong = GenerationParameters(), Wrong()
    message.guidance_schedule.explicit.scales.extend([float("nan")] * 100_000)
    read_choice(message, "guidance_schedule", None, wrong)
    assert wrong == {"guidance_schedule.explicit.scales": "must be at most 1000, not 100000"}


def test_numbers_are_checked_one_by_one_before_they_are_compared() -> None:
    message, wrong = GenerationParameters(), Wrong()
    message.skip_layer_guidance.layers.extend([1, 1])
    message.skip_layer_guidance.start, message.skip_layer_guidance.stop = 0.5, 7
    read(SkipLayerGuidance, message.skip_layer_guidance, "skip_layer_guidance", wrong)
    assert wrong == {"skip_layer_guidance.stop": "must be a number from 0 to 1, not 7"}
    message.skip_layer_guidance.stop = 0.25
    wrong.clear()
    read(SkipLayerGuidance, message.skip_layer_guidance, "skip_layer_guidance", wrong)
    assert set(wrong) == {"skip_layer_guidance.layers", "skip_layer_guidance.stop"}


def _rounded(value: Any) -> Any:
    """Numbers as a float32 tells them."""
    import numpy as np

    if isinstance(value, tuple):
        return tuple(_rounded(each) for each in value)
    return value if isinstance(value, int) else float(str(np.float32(value)))
