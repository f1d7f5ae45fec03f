"""`triptych certs` and `triptych up --mtls`: a set of certificates, and the same pictures with them."""

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.serving import refused
from triptych.client import AsyncClient, Client
from triptych.errors import TriptychError
from triptych.serving.channels import Tls, open_channel
from triptych.serving.credentials import CHECK_SECONDS, reloaded_tls
from triptych.v1 import denoiser_pb2
from triptych.v1.denoiser_pb2_grpc import DenoiserServiceStub
from triptych_local.certificate_set import HOLDERS, ROOT, CertificateSet
from triptych_local.certificates import names_of, new_root
from triptych_local.cli import app
from triptych_local.running.mtls import with_mtls
from triptych_local.running.processes import running
from triptych_local.running.programs import Addresses, split_programs
from triptych_local.running.settings import ModelChoice

DAY = timedelta(days=1)
PROMPT = "a zebra above a cactus"
STEPS = 2
SCRIPT = Path(__file__).with_name("mtls_client.js")


def test_a_set_is_made_shown_and_renewed_under_its_root(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    made = CliRunner().invoke(app, ["certs", str(folder), "--days", "7", "--name", "denoisers.example.org"])
    assert made.exit_code == 0, made.output
    assert f"{folder}/denoiser.pem: expires " in made.output
    assert "in 7 days; triptych-denoiser, localhost, 127.0.0.1, ::1, spiffe://triptych.local/" in made.output
    found = CertificateSet(folder)
    for name in (ROOT, *HOLDERS):
        assert stat.S_IMODE(found.key(name).stat().st_mode) == 0o600
    assert "denoisers.example.org" in names_of(found.read("denoiser").certificate)
    before = {name: found.read(name) for name in (ROOT, *HOLDERS)}
    shown = CliRunner().invoke(app, ["certs", str(folder), "--show"])
    assert shown.output == made.output
    assert {name: found.read(name).pem for name in before} == {name: one.pem for name, one in before.items()}
    renewed = CliRunner().invoke(app, ["certs", str(folder), "--days", "30"])
    assert "in 30 days" in renewed.output
    assert found.read(ROOT).pem == before[ROOT].pem
    assert found.read("client").expires > before["client"].expires + 20 * DAY


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["certs", str(tmp_path), "--show"])
    assert shown.exit_code == 1
    assert f"there is no {tmp_path}/root.key: 'triptych certs {tmp_path}' makes one" in shown.output
    wrong = CliRunner().invoke(app, ["certs", str(tmp_path), "--name", "ä"])
    assert "cannot make the certificates" in wrong.output


def test_a_set_is_renewed_in_the_last_third_of_its_life(tmp_path: Path) -> None:
    found = CertificateSet(tmp_path)
    assert found.renew_if_old(3 * DAY)
    assert not found.renew_if_old(3 * DAY)
    assert found.renew_if_old(10 * DAY)
    assert found.read("vae-codec").expires > datetime.now(UTC) + 9 * DAY


def test_a_root_that_ends_too_soon_is_replaced_and_stays_trusted(tmp_path: Path) -> None:
    found = CertificateSet(tmp_path)
    found.renew(DAY)
    old = found.read(ROOT).pem
    found.renew(timedelta(days=3700))
    assert found.read(ROOT).pem != old
    assert found.certificate(ROOT).read_bytes().endswith(old)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return min(int(bound.getsockname()[1]), 65000)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Addresses, CertificateSet]]:
    """The model inside on ports of this host, with mTLS, as `triptych up --tcp --mtls` runs it."""
    folder = tmp_path_factory.mktemp("mtls")
    certificates = CertificateSet(folder / "certs")
    certificates.renew(DAY)
    addresses = Addresses.on_ports(free_port())
    programs = with_mtls(split_programs(addresses, ModelChoice()), certificates, folder)
    loop = asyncio.new_event_loop()
    said: list[str] = []
    services = running(programs, said.append)
    loop.run_until_complete(services.__aenter__())
    yield addresses, certificates
    loop.run_until_complete(services.__aexit__(None, None, None))
    loop.close()
    assert [
        line for line in said if "handshake" in line.lower()
    ] == []  # gRPC's own lines: anybody could fill a log


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_a_fleet_with_mtls_makes_the_same_bits_as_one_process_without(
    fleet: tuple[Addresses, CertificateSet], tmp_path: Path
) -> None:
    addresses, certificates = fleet
    mine = certificates.of("client")
    tls = [
        *("--target", f"https://{addresses.coordinator}", "--tls-roots", str(mine.roots)),
        *("--tls-certificate", str(mine.certificate), "--tls-key", str(mine.key)),
    ]
    for name, place in (("plain", ["--fused"]), ("mtls", tls)):
        words = [
            "generate",
            PROMPT,
            "--seed",
            "7",
            "--steps",
            str(STEPS),
            "-o",
            str(tmp_path / f"{name}.png"),
        ]
        done = CliRunner().invoke(app, [*words, *place])
        assert done.exit_code == 0, done.output
    assert np.array_equal(pixels(tmp_path / "plain.png"), pixels(tmp_path / "mtls.png"))


async def test_a_stage_takes_no_calls_of_a_client_and_the_coordinator_none_without_a_certificate(
    fleet: tuple[Addresses, CertificateSet],
) -> None:
    addresses, certificates = fleet
    mine, question = certificates.of("client"), denoiser_pb2.DenoiserServiceGetModelRequest()
    async with open_channel(addresses.stages[1], Tls(reloaded_tls(mine))) as channel:
        refusal = await refused(DenoiserServiceStub(channel).GetModel(question))
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert "does not take calls from spiffe://triptych.local/triptych-client" in refusal.message
    async with AsyncClient(addresses.coordinator, roots=mine.roots) as client:
        with pytest.raises(TriptychError, match="asks for a client certificate"):
            await client.model()


def test_every_certificate_and_root_of_a_fleet_is_replaced_under_load_and_no_request_fails(
    fleet: tuple[Addresses, CertificateSet],
) -> None:
    """First all trust the new root too, then all have certificates of it, then nobody trusts the old one.

    TRIPTYCH_ROTATIONS=20 for more than one round.
    """
    addresses, certificates = fleet
    mine = certificates.of("client")
    tls = {"roots": mine.roots, "certificate": mine.certificate, "key": mine.key}
    ended, pictures = threading.Event(), list[bytes]()

    def load(client: Client) -> None:
        while not ended.is_set():
            pictures.append(client.generate(PROMPT, seed=7, num_inference_steps=STEPS).images[0].png)

    def wait() -> None:
        """Till all have looked at their files, and pictures were made since."""
        time.sleep(2 * CHECK_SECONDS)
        for running in loads:
            assert not running.done(), running.result()
        before = len(pictures)
        while len(pictures) < before + 3 and not any(running.done() for running in loads):
            time.sleep(0.05)

    files = certificates.certificate(ROOT), certificates.key(ROOT)
    with Client(addresses.coordinator, retry_seconds=0, **tls) as client, ThreadPoolExecutor() as threads:
        loads = [threads.submit(load, client) for _ in range(2)]
        try:
            for number in range(int(os.environ.get("TRIPTYCH_ROTATIONS", "1"))):
                root, old = new_root(f"root {number}", 10 * DAY), certificates.read(ROOT)
                root.write(*files, also=old.pem)
                wait()
                certificates.renew(DAY)
                wait()
                root.write(*files)
                wait()
        finally:
            ended.set()
        for running in loads:
            running.result()
    assert set(pictures) == {pictures[0]}
    with Client(addresses.coordinator, **tls) as client:
        client.generate(PROMPT, seed=7, num_inference_steps=STEPS)


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here")
def test_a_client_in_javascript_calls_over_mtls(
    fleet: tuple[Addresses, CertificateSet], tmp_path: Path
) -> None:
    addresses, certificates = fleet
    install = ["npm", "install", "--silent", "--no-save", "--no-package-lock", "--prefix", str(tmp_path)]
    installed = subprocess.run([*install, "@grpc/grpc-js@1.14", "@grpc/proto-loader@0.8"], check=False)
    if installed.returncode:
        pytest.skip("npm cannot install @grpc/grpc-js here")
    script = tmp_path / SCRIPT.name
    shutil.copy(SCRIPT, script)
    protos = SCRIPT.parents[2] / "protos"
    mine = certificates.of("client")
    command = ["node", script, addresses.coordinator, protos, mine.roots, mine.certificate, mine.key, PROMPT]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    (tmp_path / "js.png").write_bytes(bytes.fromhex(json.loads(done.stdout)["png"]))
    with Client(
        addresses.coordinator, roots=mine.roots, certificate=mine.certificate, key=mine.key
    ) as client:
        client.generate(PROMPT, seed=7, num_inference_steps=STEPS).images[0].save(tmp_path / "python.png")
    assert np.array_equal(pixels(tmp_path / "js.png"), pixels(tmp_path / "python.png"))
