"""LoRAs of requests and of the options, over a real socket."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.serving import channel_to_stage, refused, stage_settings
from triptych.tensors import message_to_torch
from triptych.v1.lora_pb2 import Lora
from triptych.v1.text_encoder_pb2 import (
    PromptWeights,
    TextEncoderServiceEncodeRequest,
    TextEncoderServiceEncodeResponse,
    TextEncoderServiceGetModelRequest,
    WeightedSpan,
)
from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceStub
from triptych_text_encoder.__main__ import STAGE
from triptych_text_encoder.encoding import Encoding
from triptych_text_encoder.loras import TextEncoderNames
from triptych_text_encoder.recipes import Recipe
from triptych_text_encoder.settings import TextEncoderSettings

CLIP_L = "text_model.encoder.layers.0.self_attn.q_proj"
CLIP_G = "text_model.encoder.layers.1.mlp.fc1"
T5 = "encoder.block.0.layer.0.SelfAttention.v"
COMPONENTS = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5}


def weight_of(checkpoint: Path, component: str) -> Tensor:
    tensors = load_file(next((checkpoint / component).glob("*.safetensors")))
    module = COMPONENTS[component]
    return next(
        tensors[name] for name in (f"{module}.weight", f"text_model.{module}.weight") if name in tensors
    )


def low_rank(checkpoint: Path, component: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows, columns = weight_of(checkpoint, component).shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)


def lora(checkpoint: Path, names: dict[str, str], seed: int = 0) -> dict[str, Tensor]:
    """A LoRA of components, with what its keys begin with for each."""
    tensors = {}
    for component, name in names.items():
        down, up = low_rank(checkpoint, component, seed)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return tensors


def changed(checkpoint: Path, folder: Path, times: float, *components: str) -> Path:
    """The checkpoint with the LoRA in its weights."""
    shutil.copytree(checkpoint, folder)
    for component in components:
        file = next((folder / component).glob("*.safetensors"))
        tensors = load_file(file)
        down, up = low_rank(checkpoint, component)
        name = next(name for name in tensors if name.endswith(f"{COMPONENTS[component]}.weight"))
        tensors[name] = (tensors[name].double() + times * up.double() @ down.double()).float()
        save_file(tensors, file)
    return folder


def settings(checkpoint: Path, tmp_path: Path, **loras: dict[str, Tensor]) -> TextEncoderSettings:
    folder = tmp_path / "loras"
    folder.mkdir()
    for name, tensors in loras.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return stage_settings(STAGE, checkpoint, tmp_path).model_copy(update={"lora_folder": folder})


async def encode(stub: Any, *prompts: str, **loras: float) -> TextEncoderServiceEncodeResponse:
    messages = [Lora(name=name, weight=weight) for name, weight in loras.items()]
    request = TextEncoderServiceEncodeRequest(prompts=prompts, loras=messages)
    response: TextEncoderServiceEncodeResponse = await stub.Encode(request)
    return response


def check(response: TextEncoderServiceEncodeResponse, expected: Encoding) -> None:
    (conditioning,) = response.conditionings
    sequence = message_to_torch(conditioning.sequence, "sequence")
    torch.testing.assert_close(sequence, expected.sequence, rtol=1e-4, atol=1e-5)
    pooled = message_to_torch(conditioning.pooled, "pooled")
    torch.testing.assert_close(pooled, expected.pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("text_encoder", f"text_encoder.{CLIP_L}"),
        ("text_encoder", f"base_model.model.text_encoder.{CLIP_L}"),
        ("text_encoder", f"lora_te1_{CLIP_L.replace('.', '_')}"),
        ("text_encoder", f"lora_te_{CLIP_L.replace('.', '_')}"),
        ("text_encoder", f"text_encoders.clip_l.transformer.{CLIP_L}"),
        ("text_encoder", f"text_encoder.{CLIP_L.removeprefix('text_model.')}"),
        ("text_encoder_2", f"text_encoder_2.{CLIP_G}"),
        ("text_encoder_2", f"lora_te2_{CLIP_G.replace('.', '_')}"),
        ("text_encoder_2", f"text_encoders.clip_g.transformer.{CLIP_G}"),
        ("text_encoder_3", f"text_encoder_3.{T5}"),
        ("text_encoder_3", f"lora_te3_{T5.replace('.', '_')}"),
        ("text_encoder_3", f"text_encoders.t5xxl.transformer.{T5}"),
    ],
)
async def test_a_lora_is_that_of_changed_weights(
    component: str, name: str, with_t5: Path, load: Callable[[Path], Recipe], tmp_path: Path
) -> None:
    expected = load(changed(with_t5, tmp_path / "changed", 0.7, component)).encode("a red cat")
    given = settings(with_t5, tmp_path, ink=lora(with_t5, {component: name}))
    async with channel_to_stage(STAGE, given) as channel:
        stub: Any = TextEncoderServiceStub(channel)
        plain = await encode(stub, "a red cat")
        response = await encode(stub, "a red cat", ink=0.7)
        after = await encode(stub, "a red cat")

    check(response, expected)
    assert plain == after != response
    assert plain.fingerprint != response.fingerprint
    assert plain.conditionings[0].digest != response.conditionings[0].digest
    assert list(response.warnings) == []


@pytest.mark.parametrize(
    ("makers", "linear", "names"),
    [
        (
            {"clip_l": "text_encoder", "t5xxl": "text_encoder_2"},  # FLUX.1, whose T5 sd-scripts numbers 3
            f"text_encoder_2.{T5}",
            [
                f"lora_te3_{T5.replace('.', '_')}",
                f"lora_te2_{T5.replace('.', '_')}",
                f"text_encoder_2.{T5}",
                f"text_encoders.t5xxl.transformer.{T5}",
            ],
        ),
        (
            {"qwen3_4b": "text_encoder"},  # Z-Image
            "text_encoder.layers.0.self_attn.q_proj",
            [
                "lora_te_layers_0_self_attn_q_proj",
                "lora_te1_model_layers_0_self_attn_q_proj",
                "text_encoder.model.layers.0.self_attn.q_proj",
                "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj",
            ],
        ),
    ],
)
def test_encoders_of_other_families_have_their_names(
    makers: dict[str, str], linear: str, names: list[str]
) -> None:
    known = TextEncoderNames(makers, ["text_encoder.text_model.q", linear])

    assert [known.find(name) for name in names] == [[(linear, None)]] * len(names)
    assert known.find(f"lora_te4_{T5.replace('.', '_')}") is known.find("transformer.q") is None


async def test_loras_of_requests_and_weights_of_parts_do_not_mix(without_t5: Path, tmp_path: Path) -> None:
    names = {"text_encoder": f"lora_te1_{CLIP_L.replace('.', '_')}"}
    transformer = {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}
    given = settings(
        without_t5,
        tmp_path,
        ink=lora(without_t5, names),
        oil=lora(without_t5, names, seed=1) | transformer,
        photo=transformer,
    )
    weights = [PromptWeights(spans=[WeightedSpan(start=0, stop=1, weight=0.5)])]
    async with channel_to_stage(STAGE, given) as channel:
        stub: Any = TextEncoderServiceStub(channel)
        answers = [
            await encode(stub, "a cat"),
            await encode(stub, "a cat", ink=1),
            await encode(stub, "a cat", ink=0.5),
            await encode(stub, "a cat", oil=1),
            await encode(stub, "a cat", ink=1, oil=1),
        ]
        for loras in ([], [Lora(name="ink")]):
            request = TextEncoderServiceEncodeRequest(prompts=["a cat"], weights=weights, loras=loras)
            answers.append(await stub.Encode(request))
        again = await encode(stub, "a cat", ink=1)
        without = [await encode(stub, "a cat", photo=1), await encode(stub, "a cat", ink=0)]
        model = await stub.GetModel(TextEncoderServiceGetModelRequest())

    assert len({answer.conditionings[0].digest for answer in answers}) == len(answers)
    assert again == answers[1]
    assert without == [answers[0], answers[0]]
    assert list(model.loras) == ["ink", "oil", "photo"]


async def test_a_file_that_changed_is_read_again_and_one_that_is_gone_is_unknown(
    without_t5: Path, tmp_path: Path
) -> None:
    names = {"text_encoder": f"text_encoder.{CLIP_L}"}
    given = settings(without_t5, tmp_path, ink=lora(without_t5, names))
    file = tmp_path / "loras" / "ink.safetensors"
    async with channel_to_stage(STAGE, given) as channel:
        stub: Any = TextEncoderServiceStub(channel)
        first = await encode(stub, "a cat", ink=1)
        save_file(lora(without_t5, names, seed=5), file)
        second = await encode(stub, "a cat", ink=1)
        file.unlink()
        error = await refused(encode(stub, "a cat", ink=1))

    assert first.conditionings[0].digest != second.conditionings[0].digest
    assert first.fingerprint != second.fingerprint
    assert error.code is grpc.StatusCode.NOT_FOUND


async def test_what_fits_nothing_is_named_or_refused(without_t5: Path, tmp_path: Path) -> None:
    """SD3 without T5 takes a LoRA that was trained with it; one with nothing else is refused."""
    t5 = {f"lora_te3_{T5.replace('.', '_')}.lora_down.weight": torch.ones(2, 2)}
    some = lora(without_t5, {"text_encoder": f"text_encoder.{CLIP_L}"}) | t5
    given = settings(
        without_t5, tmp_path, some=some, none=t5, both=t5 | {"transformer.x.lora_A.weight": torch.ones(1, 1)}
    )
    async with channel_to_stage(STAGE, given) as channel:
        stub: Any = TextEncoderServiceStub(channel)
        applied, passed_over = await encode(stub, "a cat", some=1), await encode(stub, "a cat", both=1)
        error = await refused(encode(stub, "a cat", none=1))
        many = await refused(encode(stub, "a cat", **{str(number): 1.0 for number in range(9)}))

    (key,) = t5
    sentence = f"tensors fit nothing in the model's text encoders and are not applied, such as {key}"
    assert list(applied.warnings) == [f"the LoRA 'some': 1 of its 3 {sentence}"]
    assert list(passed_over.warnings) == [f"the LoRA 'both': 1 of its 1 {sentence}"]
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "no LoRA for this model's text encoders: none of its 1 tensors fits" in error.message
    assert (many.code, many.message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "loras: 9 of them; allowed are 0 to 8",
    )


async def test_a_lora_of_the_options_is_that_of_changed_weights(
    without_t5: Path, load: Callable[[Path], Recipe], tmp_path: Path
) -> None:
    both = ("text_encoder", "text_encoder_2")
    expected = load(changed(without_t5, tmp_path / "changed", 0.5, *both)).encode("a red cat")
    names = {"text_encoder": f"text_encoder.{CLIP_L}", "text_encoder_2": f"text_encoder_2.{CLIP_G}"}
    given = settings(without_t5, tmp_path, ink=lora(without_t5, names))
    async with channel_to_stage(STAGE, given) as channel:
        plain = await encode(TextEncoderServiceStub(channel), "a red cat")
    given = given.model_copy(update={"lora": ["ink=0.5"], "listen": f"unix:{tmp_path}/second.sock"})
    async with channel_to_stage(STAGE, given) as channel:
        response = await encode(TextEncoderServiceStub(channel), "a red cat")

    check(response, expected)
    assert response.fingerprint != plain.fingerprint


async def test_quantized_encoders_take_loras(without_t5: Path, tmp_path: Path) -> None:
    names = {"text_encoder": f"text_encoder.{CLIP_L}"}
    given = settings(without_t5, tmp_path, ink=lora(without_t5, names))
    async with channel_to_stage(STAGE, given) as channel:
        exact = await encode(TextEncoderServiceStub(channel), "a red cat", ink=1)
        plain = await encode(TextEncoderServiceStub(channel), "a red cat")
    update = {"quantization": "int8-weight-only", "listen": f"unix:{tmp_path}/second.sock"}
    async with channel_to_stage(STAGE, given.model_copy(update=update)) as channel:
        rounded = await encode(TextEncoderServiceStub(channel), "a red cat", ink=1)

    def sequence(response: TextEncoderServiceEncodeResponse) -> Tensor:
        return message_to_torch(response.conditionings[0].sequence, "sequence")

    change = (sequence(exact) - sequence(plain)).abs().max()
    assert 0 < (sequence(rounded) - sequence(exact)).abs().max() < 0.2 * change
