"""Prompts, pictures and latents are in no log, trace or error of any service, at any level."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openai
import pytest
from PIL import Image

from tests.gateway.conftest import Answer, ask, free_port
from tests.local.conftest import Up, running_up
from tests.otlp import over_grpc
from triptych.tensors import array_to_message
from triptych.v1 import denoiser_pb2, text_encoder_pb2, vae_codec_pb2
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2_grpc import ImageGenerationServiceStub
from triptych.v1.text_encoder_pb2_grpc import TextEncoderServiceStub
from triptych.v1.vae_codec_pb2_grpc import VaeCodecServiceStub

PROMPT = "heliotrope-secret-prompt"
PICTURE = b"saffron-secret-picture"
LATENTS = b"<ee><ff><gg><hh><ii><jj>"
"""Whose four bytes each are a float32 near 0.2."""
SIZE = 64
FEW = {"num_inference_steps": 2, "seeds": [7], "height": SIZE, "width": SIZE}
FORM: dict[str, Any] = {"seed": 7, "num_inference_steps": 2}


def marked_png() -> bytes:
    """A picture whose file has the marker as it is: its pixels are stored, not compressed."""
    file, row = io.BytesIO(), (PICTURE * SIZE)[:SIZE]
    picture = Image.frombytes("P", (SIZE, SIZE), row * SIZE)  # of a palette, whose rows PNG does not filter
    picture.putpalette([value for grey in range(256) for value in (grey, grey, grey)])
    picture.save(file, "PNG", compress_level=0)
    assert PICTURE in file.getvalue()
    return file.getvalue()


def marked_latents(channels: int) -> np.ndarray:
    side = SIZE // 8
    data = (LATENTS * (channels * side * side))[: 4 * channels * side * side]
    return np.frombuffer(data, "<f4").reshape(1, channels, side, side)


def needles(secret: bytes) -> Iterator[str]:
    """As text, hex and base64 have it, wherever in a file it begins."""
    yield secret.decode()
    yield secret.hex()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret).decode()
        yield encoded[4 : 4 * (len(secret) // 3)]


def as_numbers(latents: bytes) -> Iterator[str]:
    for number in np.frombuffer(latents, "<f4")[:3]:
        yield str(number)[:9]


def grpc_calls(up: Up, errors: list[str]) -> list[grpc.StatusCode]:
    """Requests to every service that work, that are wrong, and that fail on what they carry."""
    png, codes = marked_png(), []

    def call(method: Any, request: Any) -> Any:
        """The answer, or the last of a stream; None for an error."""
        try:
            answer = method(request, timeout=60)
            answer = list(answer)[-1] if hasattr(answer, "cancel") else answer
        except grpc.RpcError as error:
            codes.append(error.code())
            errors.append(f"{error.details()} {error.trailing_metadata()}")
            return None
        codes.append(grpc.StatusCode.OK)
        return answer

    folder = up.folder()
    with (
        grpc.insecure_channel(f"unix:{folder}/coordinator.sock") as coordinator,
        grpc.insecure_channel(f"unix:{folder}/text-encoder.sock") as text_encoder,
        grpc.insecure_channel(f"unix:{folder}/denoiser.sock") as denoiser,
        grpc.insecure_channel(f"unix:{folder}/vae-codec.sock") as vae_codec,
    ):
        model = DenoiserServiceStub(denoiser).GetModel(denoiser_pb2.DenoiserServiceGetModelRequest())
        latents = marked_latents(model.latent_channels)
        infinite = np.where(np.arange(latents.size).reshape(latents.shape) == 5, np.inf, latents)
        good, bad = (array_to_message(one.astype(np.float32)) for one in (latents, infinite))
        stub = ImageGenerationServiceStub(coordinator)
        for fields in (
            {"image": png, "strength": 0.5},
            {"image": png[:-100], "strength": 0.5},
            {"image": png, "mask": png[: len(png) // 2]},
            {"image": PICTURE * 100},
            {"latents": {"noise": good}},
            {"latents": {"noise": bad}},
            {"latents": {"clean": good}, "strength": 7},
            {"return_latents": True, "negative_prompts": [PROMPT, PROMPT]},
            {"prompt_weighting": True, "prompts": [f"(({PROMPT}"]},
            {"height": -1},
        ):
            parameters = GenerationParameters(**{"prompts": [PROMPT], **FEW, **fields})
            call(stub.Generate, pb.GenerateRequest(parameters=parameters))
            call(stub.GenerateImages, pb.GenerateImagesRequest(parameters=parameters))
        for one in (stub.Generate, stub.GenerateImages):  # bytes that are no message
            path = one._method.decode() if isinstance(one._method, bytes) else one._method
            raw = coordinator.unary_unary(path, request_serializer=None, response_deserializer=None)
            call(raw, b"\xff" + PICTURE + PROMPT.encode())
        encode = TextEncoderServiceStub(text_encoder).Encode
        text = text_encoder_pb2.TextEncoderServiceEncodeRequest
        call(encode, text(prompts=[PROMPT]))
        call(encode, text(prompts=[f"{PROMPT}\0"]))
        for sent in (good, bad):
            predict = denoiser_pb2.PredictRequest(latents=sent, sigmas=[0.5], branches=[{}])
            call(DenoiserServiceStub(denoiser).Predict, predict)
            decode = vae_codec_pb2.VaeCodecServiceDecodeRequest(latents=sent)
            call(VaeCodecServiceStub(vae_codec).Decode, decode)
        rows = np.frombuffer((PICTURE * SIZE)[: 3 * SIZE] * SIZE, np.uint8).reshape(1, SIZE, SIZE, 3)
        for pixels in (rows, rows[:, :-3]):
            ask_vae = vae_codec_pb2.VaeCodecServiceEncodeRequest(pixels=array_to_message(pixels))
            call(VaeCodecServiceStub(vae_codec).Encode, ask_vae)
    return codes


def http_calls(url: str, errors: list[str]) -> list[int]:
    """The same through each of the gateway's doors."""
    png, statuses = marked_png(), []
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for image, options in ((png, {}), (png[:-100], {}), (PICTURE * 100, {}), (png, {"strength": 7})):
            try:
                client.images.edit(image=image, prompt=PROMPT, extra_body=FORM | options)
                statuses.append(200)
            except openai.APIStatusError as error:
                statuses.append(error.status_code)
                errors.append(error.response.text)

    def post(path: str, **fields: Any) -> None:
        answer: Answer = ask(f"{url}{path}", json.dumps(fields).encode(), content_type="application/json")
        statuses.append(answer.status)
        if answer.status != 200:
            errors.append(answer.data.decode())

    for image in (png, png[:-100], PICTURE * 100):
        text = base64.b64encode(image).decode()
        post("/sdapi/v1/img2img", prompt=PROMPT, init_images=[text], seed=7, steps=2, width=SIZE, height=SIZE)
        post("/sdapi/v1/png-info", image=text)
        parameters = {"prompts": [PROMPT], "image": text, "numInferenceSteps": 2, "strength": 0.5}
        post("/triptych/v1/generate", parameters=parameters)
        post("/triptych/v1/generate", parameters={**parameters, "colour": text})
    post("/v1/images/generations", prompt=PROMPT, n=PROMPT)
    post("/v1/images/generations", prompt=PROMPT, seed=7, num_inference_steps=2)
    return statuses


def test_nothing_of_a_request_is_in_a_log_a_trace_or_an_error(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, errors = f"127.0.0.1:{free_port()}", list[str]()
    with over_grpc() as (received, environment):
        for name, value in (environment | {"TRIPTYCH_LOG_LEVEL": "DEBUG"}).items():
            monkeypatch.setenv(name, value)
        options = ("--model", tiny_checkpoint, "--http", address, "--log-level", "DEBUG")
        with running_up(tmp_path / "run", *options) as up:
            codes = grpc_calls(up, errors)
            statuses = http_calls(f"http://{address}", errors)
        logs, traces = "\n".join(up.lines), "\n".join(span.text for span in received.spans)
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= set(codes)
    assert not {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL} & set(codes)
    assert {200, 400} <= set(statuses)
    assert max(statuses) < 500
    assert {"coordinator", "text-encoder", "denoiser", "vae-codec", "gateway"} <= {
        span.service for span in received.spans
    }
    assert logs.count(" DEBUG ") > 20
    secrets = [*needles(PICTURE), *needles(LATENTS), *as_numbers(LATENTS)]
    for place, said in (("log", logs), ("trace", traces), ("error", "\n".join(errors))):
        own = [] if place == "error" else [*needles(PROMPT.encode())]  # the sender's words, to the sender
        assert not [needle for needle in (*secrets, *own) if needle in said], place
