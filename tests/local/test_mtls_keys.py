"""`triptych up --mtls` with keys and tokens: a certificate opens the connection, what a call sends counts."""

import json
from pathlib import Path

import grpc
import pytest

from tests.local.conftest import run, running_up
from tests.shared.serving.credentials import AUDIENCE, ISSUER, Signer, write_jwks
from triptych.client import Client
from triptych.errors import TriptychError, retry_after_seconds
from triptych.serving.channels import BlockingChannels, tls_of
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych_local.certificate_set import CertificateSet
from triptych_local.running.folders import CERTIFICATES

STEPS = 2


def test_certificates_keys_and_tokens_together(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIPTYCH_API_KEY", raising=False)
    keys, signer = tmp_path / "keys.json", Signer()
    made = {
        name: run("keys", "make", keys, "--name", name, "--role", role).stdout.strip()
        for name, role in (("alice", "client"), ("ops", "operator"))
    }
    write_jwks(tmp_path / "jwks.json", signer)
    rules = [{"group": "trial", "loras": [], "quota": 0.001}]
    (tmp_path / "limits.json").write_text(json.dumps({"limits": rules}))
    options = {
        "--model": tiny_checkpoint,
        "--keys-file": keys,
        "--jwks": tmp_path / "jwks.json",
        "--jwt-issuer": ISSUER,
        "--jwt-audience": AUDIENCE,
        "--limits-file": tmp_path / "limits.json",
        "--certificate-role": "spiffe://triptych.local/triptych-client=operator",
    }
    words = [word for option in options.items() for word in option]
    with running_up(tmp_path / "run", "--mtls", *words) as up:
        certificates = CertificateSet(up.folder() / CERTIFICATES)
        mine = certificates.of("client")
        tls = {"roots": mine.roots, "certificate": mine.certificate, "key": mine.key}

        def client(api_key: str = "", **given: Path | None) -> Client:
            return Client(up.coordinator(), api_key=api_key, retry_seconds=0, **(tls | given))

        def refusal(api_key: str = "", **given: Path | None) -> TriptychError:
            with client(api_key, **given) as calling, pytest.raises(TriptychError) as caught:
                calling.generate("a cat", seed=7, num_inference_steps=STEPS)
            return caught.value

        # The certificate opens the connection; by itself it has the role that its name was given.
        error = refusal(made["alice"], certificate=None, key=None)
        assert "asks for a client certificate" in error.message
        assert refusal().code is grpc.StatusCode.PERMISSION_DENIED
        with client() as calling:
            assert calling.model().name
        # What is sent counts instead of it, and nothing is added up.
        assert "'ops'" in refusal(made["ops"]).message
        for wrong in (made["alice"][:-1] + "!", Signer().token(), signer.token(exp=1)):
            assert refusal(wrong).code is grpc.StatusCode.UNAUTHENTICATED
        assert refusal(signer.token(roles=("operator",))).code is grpc.StatusCode.PERMISSION_DENIED
        pictures = []
        for good in (made["alice"], signer.token(), signer.token(sub="bob", groups=["trial"])):
            with client(good) as calling:
                pictures.append(calling.generate("a cat", seed=7, num_inference_steps=STEPS).images[0].png)
        assert pictures == [pictures[0]] * 3
        spent = refusal(signer.token(sub="bob", groups=["trial"]))
        assert spent.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (retry_after_seconds(spent) or 0) > 60
        # Who watches over the fleet shows the operator's key. The certificate is found where `up` made it.
        for name, text in made.items():
            (tmp_path / f"{name}.key").write_text(f"{text}\n")
        files = ("--tls-roots", mine.roots, "--tls-certificate", mine.certificate, "--tls-key", mine.key)
        for place in ((), ("--target", up.coordinator(), *files)):
            watch = ("top", "--once", *place, "--api-key-file")
            told = run(*watch, tmp_path / "ops.key", environment=up.environment)
            assert told.status == 0, told.stderr
            assert told.stdout.startswith("tiny: 0 requests running")
            shown = [line.split()[:2] for line in told.stdout.splitlines()]
            assert [f"unix:{up.folder()}/denoiser.sock", "ready"] in shown
            mistaken = run(*watch, tmp_path / "alice.key", environment=up.environment)
            assert (mistaken.status, mistaken.stdout) == (1, "")
            assert "'alice'" in mistaken.stderr
            assert "is for the role operator" in mistaken.stderr
        # Stages: the coordinator's certificate to connect, and the key that it alone has.
        assert stage_refusal(up.folder(), certificates, "client", made["alice"]) == (
            grpc.StatusCode.PERMISSION_DENIED
        )
        for sent in ("", made["alice"], signer.token(roles=("coordinator",))):
            assert stage_refusal(up.folder(), certificates, "coordinator", sent) == (
                grpc.StatusCode.UNAUTHENTICATED
            )
    logs = "\n".join(up.lines)
    assert not [text for text in made.values() if text[12:] in logs]


def stage_refusal(folder: Path, certificates: CertificateSet, name: str, sent: str) -> grpc.StatusCode:
    """What a denoiser answers to who holds the certificate and sends that."""
    address, files = f"unix:{folder}/denoiser.sock", certificates.of(name)
    channels = BlockingChannels(address, tls_of(address, files.roots, files.certificate, files.key), 1 << 20)
    try:
        stub, metadata = DenoiserServiceStub(channels.latest()), (("authorization", f"Bearer {sent}"),)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModel(DenoiserServiceGetModelRequest(), metadata=metadata if sent else (), timeout=60)
    finally:
        channels.close()
    code: grpc.StatusCode = caught.value.code()
    return code
