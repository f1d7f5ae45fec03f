"""From checked parameters back to the wire's."""

from collections.abc import Sequence
from dataclasses import fields

from triptych.v1 import editing_pb2, lora_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request.choices import write_field
from triptych_coordinator.request.parameters import Lora, Parameters
from triptych_coordinator.sampling.guidance.schedules import ExplicitGuidance

_LEFT_OUT = {"references"}


def parameters_to_message(parameters: Parameters) -> GenerationParameters:
    """The request with every default filled in: sent again, it gives the same pictures.

    Without the bytes of pictures and the numbers of latents.
    """
    message = GenerationParameters()
    known = set(message.DESCRIPTOR.fields_by_name) - _LEFT_OUT
    for field in fields(parameters):
        value = getattr(parameters, field.name)
        if field.name in known and value != field.default:
            write_field(message, field.name, value)
    if isinstance(parameters.guidance_schedule, ExplicitGuidance):
        message.ClearField("guidance_scale")
    if parameters.edit is not None:
        message.strength = parameters.edit.strength
        if any(parameters.edit.margins):
            message.margins.CopyFrom(editing_pb2.Margins(**parameters.edit.margins._asdict()))
        message.preserve = parameters.edit.preserve
        if parameters.edit.image:
            message.read_as_diffusers = parameters.edit.read_as_diffusers
    return message


def loras_to_messages(loras: Sequence[Lora]) -> list[lora_pb2.Lora]:
    """As requests name them, to the coordinator and to the denoiser."""
    return [lora_pb2.Lora(name=lora.name, weight=lora.weight) for lora in loras]
