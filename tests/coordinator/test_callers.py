"""What a coordinator does for callers that it knows: what they may use, their share, what stays theirs."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.coordinator.conftest import House
from tests.coordinator.numpy_stages import serve
from tests.serving import refused
from tests.shared.serving.credentials import (
    AUDIENCE,
    ISSUER,
    Authority,
    Signer,
    bearer,
    write_jwks,
    write_keys,
)
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import internal, invalid_argument, retry_after_seconds
from triptych.serving.callers.keys import Key, new_key
from triptych.serving.callers.sent_keys import read_key
from triptych.serving.reloading import reloaded_file
from triptych.serving.server import Server, Service
from triptych.serving.settings import ServerSettings
from triptych.v1 import image_generation_pb2 as pb
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych.v1.image_generation_pb2_grpc import (
    ImageGenerationServiceStub,
    add_ImageGenerationServiceServicer_to_server,
)
from triptych.v1.lora_pb2 import Lora
from triptych_coordinator.fleet.connections import Wiring
from triptych_coordinator.servicer import ImageGenerationServicer
from triptych_coordinator.settings import CoordinatorLimits

Ask = Callable[..., Any]
MARKER = "heliotrope-secret-prompt"


class KeyedHouse(House):
    """A coordinator that knows its callers by keys."""

    keys: list[Key]

    async def start_coordinator(self) -> None:
        write_keys(self.folder / "keys.json", self.keys)
        add = partial(add_ImageGenerationServiceServicer_to_server, self.servicer)
        settings = ServerSettings(
            listen=self.address("coordinator"),
            drain_seconds=0,
            grace_seconds=0,
            keys_file=self.folder / "keys.json",
        )
        self.servers["coordinator"] = Server([Service("triptych.v1.ImageGenerationService", add)], settings)
        await self.servers["coordinator"].start()
        self.channel = grpc.aio.insecure_channel(self.address("coordinator"))
        self.stub = ImageGenerationServiceStub(self.channel)

    async def ask(self, key: str, prompt: str = "a cat", **fields: Any) -> pb.GenerateImagesResponse:
        given = {"num_inference_steps": 2, "seeds": [1], **fields}
        parameters = GenerationParameters(prompts=[prompt], **given)
        request = pb.GenerateImagesRequest(parameters=parameters)
        response = await self.stub.GenerateImages(request, metadata=bearer(key), timeout=60)
        assert isinstance(response, pb.GenerateImagesResponse)
        return response


@asynccontextmanager
async def keyed(
    checkpoint: Checkpoint, folder: Path, limits: CoordinatorLimits, *keys: Key
) -> AsyncIterator[KeyedHouse]:
    house = KeyedHouse(checkpoint, folder, limits)
    house.keys = list(keys)
    await house.start(("text", "denoiser", "vae"))
    try:
        yield house
    finally:
        await house.stop()


async def test_models_and_loras_that_a_key_may_not_use_are_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits
) -> None:
    (painter, painters), (other, others) = (
        new_key("painter", ["client"], loras=["oil*"]),
        new_key("other", ["client"], models=["sd3*", "flux"]),
    )
    async with keyed(checkpoint, tmp_path, limits, painters, others) as house:
        question = pb.ImageGenerationServiceGetModelRequest()
        assert (await house.stub.GetModel(question, metadata=bearer(painter))).loras == ["oil paint"]
        assert (await house.ask(painter, loras=[Lora(name="oil paint")])).images
        for name in ("ink", "no such LoRA"):
            error = await refused(house.ask(painter, loras=[Lora(name="oil paint"), Lora(name=name)]))
            assert error.code is grpc.StatusCode.PERMISSION_DENIED
            assert error.message == f"{painters.caller()} may not use the LoRA '{name}', but 'oil*'"
        for call in (house.ask(other), house.stub.GetModel(question, metadata=bearer(other))):
            error = await refused(call)
            assert error.code is grpc.StatusCode.PERMISSION_DENIED
            assert "may not use the model 'numpy-model', but 'sd3*', 'flux'" in error.message


async def test_a_quota_is_the_keys_whatever_its_connections(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits
) -> None:
    (first, record), (second, unbounded) = new_key("a", ["client"], quota=2), new_key("b", ["client"])
    async with keyed(checkpoint, tmp_path, limits, record, unbounded) as house:
        usual = (await house.stub.GetModel(
            pb.ImageGenerationServiceGetModelRequest(), metadata=bearer(first)
        )).default_num_inference_steps  # fmt: skip
        await house.ask(first, num_inference_steps=2 * usual)
        error = await refused(house.ask(first, num_inference_steps=usual))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 20 < (retry_after_seconds(error) or 0) <= 30
        await house.ask(second, num_inference_steps=usual)


class CertifiedHouse(KeyedHouse):
    """A coordinator with mTLS that knows its callers by keys, tokens and certificates, and limits them."""

    limits: list[dict[str, Any]]

    async def start_coordinator(self) -> None:
        folder, self.signer, self.authority = self.folder, Signer(), Authority()
        write_keys(folder / "keys.json", self.keys)
        write_jwks(folder / "jwks.json", self.signer)
        self.write_limits()
        own = dict(zip(("key", "pem"), self.authority.issue("localhost", {"dns": "localhost"}), strict=True))
        for name, data in (own | {"root": self.authority.root}).items():
            (folder / name).write_bytes(data)
        settings = ServerSettings(
            listen=self.address("coordinator"),
            drain_seconds=0,
            grace_seconds=0,
            keys_file=folder / "keys.json",
            jwks=str(folder / "jwks.json"),
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
            certificate_role=["spiffe://example.org/*=client"],
            limits_file=folder / "limits.json",
            tls_certificate=folder / "pem",
            tls_key=folder / "key",
            tls_client_roots=folder / "root",
        )
        add = partial(add_ImageGenerationServiceServicer_to_server, self.servicer)
        self.servers["coordinator"] = Server([Service("triptych.v1.ImageGenerationService", add)], settings)
        await self.servers["coordinator"].start()
        self.channel = self.connected("painter")
        self.stub = ImageGenerationServiceStub(self.channel)

    def write_limits(self) -> None:
        (self.folder / "limits.new").write_text(json.dumps({"limits": self.limits}))
        (self.folder / "limits.new").replace(self.folder / "limits.json")

    def connected(self, name: str) -> grpc.aio.Channel:
        """As who has a certificate of that name."""
        key, chain = self.authority.issue(name, {"uri": f"spiffe://example.org/{name}"})
        credentials = grpc.ssl_channel_credentials(self.authority.root, key, chain)
        override = (("grpc.ssl_target_name_override", "localhost"),)
        return grpc.aio.secure_channel(self.address("coordinator"), credentials, options=override)


@pytest.mark.parametrize("kind", ["key", "token", "certificate"])
async def test_keys_tokens_and_certificates_are_limited_alike(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits, kind: str
) -> None:
    given = {"loras": ["oil*"], "quota": 2}
    key, record = new_key("painter", ["client"], loras=["oil*"], quota=2)
    house = CertifiedHouse(checkpoint, tmp_path, limits)
    house.keys = [record]
    house.limits = [
        {"group": "painters", **given},
        {"certificate": "spiffe://example.org/painter", **given},
        {"token": "*", "models": ["sd3*"]},
        {"certificate": "*", "models": ["sd3*"]},
    ]
    await house.start(("text", "denoiser", "vae"))
    try:
        token = house.signer.token(groups=["painters"])
        sent = {"key": bearer(key), "token": bearer(token), "certificate": ()}[kind]
        who = {
            "key": f"'painter' (key {record.id})",
            "token": f"'alice' (token of '{ISSUER}', subject 'alice')",
            "certificate": "'spiffe://example.org/painter'",
        }[kind]

        async def ask(**fields: Any) -> Any:
            parameters = GenerationParameters(prompts=["a cat"], seeds=[1], **fields)
            request = pb.GenerateImagesRequest(parameters=parameters)
            return await house.stub.GenerateImages(request, metadata=sent, timeout=60)

        question = pb.ImageGenerationServiceGetModelRequest()
        model = await house.stub.GetModel(question, metadata=sent)
        assert model.loras == ["oil paint"]
        error = await refused(ask(loras=[Lora(name="ink")], num_inference_steps=1))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert error.message == f"{who} may not use the LoRA 'ink', but 'oil*'"
        usual = model.default_num_inference_steps
        assert (await ask(num_inference_steps=2 * usual)).images
        error = await refused(ask(num_inference_steps=usual))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.message.startswith(f"{who} may have 2 pictures a minute")
        assert 20 < (retry_after_seconds(error) or 0) <= 30
        if kind != "key":  # which has its limits in its own file
            house.limits[0]["quota"] = house.limits[1]["quota"] = 1000
            house.write_limits()
            async with asyncio.timeout(30):  # as it refills now
                while isinstance(await outcome(ask(num_inference_steps=usual)), grpc.RpcError):
                    await asyncio.sleep(0.01)
        async with house.connected("other") as other:
            stub = ImageGenerationServiceStub(other)
            others = bearer(house.signer.token(sub="bob")) if kind == "token" else ()
            error = await refused(stub.GetModel(question, metadata=others))
            assert error.code is grpc.StatusCode.PERMISSION_DENIED
            assert "may not use the model 'numpy-model', but 'sd3*'" in error.message
    finally:
        await house.stop()


async def outcome(call: Any) -> Any:
    """The answer, or the error."""
    try:
        return await call
    except grpc.RpcError as error:
        return error


async def test_connections_of_one_key_have_one_share(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits
) -> None:
    (one, record), (two, other) = new_key("a", ["client"]), new_key("b", ["client"])
    limits = limits.model_copy(update={"max_waiting": 8})
    async with keyed(checkpoint, tmp_path, limits, record, other) as house:
        house.denoiser.open.clear()
        two_pictures = partial(house.ask, seeds=[1, 2], num_images_per_prompt=2)
        asked = [asyncio.create_task(two_pictures(key)) for key in (one, one, two)]
        async with asyncio.timeout(30):
            while len(house.servicer.admission._served) < 2 or house.servicer.admission._waiting == []:
                await asyncio.sleep(0.01)
        assert house.servicer.admission._served.keys() == {f"key {record.id}", f"key {other.id}"}
        assert [waiting.client for waiting in house.servicer.admission._waiting] == [f"key {record.id}"]
        house.denoiser.open.set()
        assert all(response.images for response in await asyncio.gather(*asked))


@pytest.mark.parametrize("shared", [False, True])
async def test_prompts_of_others_cannot_be_found_out_by_what_is_remembered(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits, shared: bool
) -> None:
    (one, record), (two, other) = new_key("a", ["client"]), new_key("b", ["client"])
    limits = limits.model_copy(update={"share_conditioning": shared})
    async with keyed(checkpoint, tmp_path, limits, record, other) as house:
        first = await house.ask(one)
        encoded, uploads = list(house.text_encoder.encoded), house.denoiser.uploads
        again = await house.ask(one)
        assert (house.text_encoder.encoded, house.denoiser.uploads) == (encoded, uploads)
        others = await house.ask(two)
        expected = (encoded, uploads) if shared else (2 * encoded, 2 * uploads)
        assert (house.text_encoder.encoded, house.denoiser.uploads) == expected
        assert first.images[0].png == again.images[0].png == others.images[0].png
        scopes = set(house.text_encoder.scopes)
        assert len(scopes) == (1 if shared else 2)
        assert not any(record.id.encode() in scope for scope in scopes)


async def test_no_prompt_is_ever_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Of requests that work, that are wrong, and that a stage fails on, quoting them."""
    caplog.set_level(logging.DEBUG)
    assert (await house.images(MARKER, negative_prompts=[MARKER])).images
    error = await refused(house.images(MARKER, negative_prompts=[MARKER, MARKER], height=-1))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    failures = house.text_encoder.failures
    for number, name in enumerate(("quoting", "inside", "crashing")):
        quoting = invalid_argument(("prompts[0]", f"{MARKER}: no"))
        failures.append((quoting, internal("x"), KeyError(MARKER))[number])
        own = await refused(house.images(f"{MARKER} {name}"))
        assert own.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    del quoting
    assert "is ejected" in caplog.text
    assert "internal error" in caplog.text
    assert MARKER not in caplog.text


async def test_stages_take_calls_of_the_coordinators_key_alone_and_its_file_may_be_replaced(
    checkpoint: Checkpoint, tmp_path: Path, limits: CoordinatorLimits
) -> None:
    """A stage that does not know the coordinator is no fault of a client's credential: it is not there."""
    (first, one), (second, two) = (new_key(name, ["coordinator"]) for name in ("first", "second"))
    write_keys(tmp_path / "stages.json", [one])
    sent = tmp_path / "stage-key"
    sent.write_text("tk_of_nobody\n")
    key = reloaded_file(sent, read_key).latest
    house = House(checkpoint, tmp_path, limits)
    wiring = Wiring(max_message_bytes=64 << 20, resolve_seconds=0.1, api_key=key)
    stubs = wiring.stubs(*(house.address(stage) for stage in ("text", "denoiser", "vae")))
    house.servicer = ImageGenerationServicer(checkpoint, stubs, limits)
    servicers = {"text": house.text_encoder, "denoiser": house.denoiser, "vae": house.vae_codec}
    for stage, servicer in servicers.items():
        known = tmp_path / "stages.json"
        house.servers[stage] = await serve(servicer, house.address(stage), keys_file=known)
    await house.start_coordinator()
    try:
        error = await refused(house.images("a cat"))
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert "the API key is none of those that this server knows" in error.message
        sent.write_text(first)
        assert (await house.images("a cat", seconds=30)).images
        write_keys(tmp_path / "stages.json", [two])
        sent.write_text(second)
        assert (await house.images("a dog", seconds=30)).images
    finally:
        await house.stop()
