"""A small Hugging Face hub over HTTP: a model's file list at a commit, and its files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1111111111111111111111111111111111111111"
OLD_COMMIT = "0000000000000000000000000000000000000000"


@dataclass
class Hub:
    """What the hub has, and what it is asked for. `refusal`: an HTTP status and error code for everything."""

    url: str = ""
    folder: Path = Path()
    name: str = "org/tiny"
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v1": OLD_COMMIT})
    refusal: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def files(self) -> list[str]:
        return [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]

    def downloaded(self) -> set[str]:
        """The files whose content was sent."""
        start = f"GET /{self.name}/resolve/"
        return {path.removeprefix(start).partition("/")[2] for path in self.asked if path.startswith(start)}


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder=folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("authorization", ""))
            words = self.path.partition("?")[0].strip("/").split("/")
            if len(words) < 4:
                self._send(404)
            elif words[:2] == ["api", "models"]:
                self._model("/".join(words[2:4]), words[5] if len(words) > 5 else "main")
            else:
                self._file("/".join(words[:2]), words[3], "/".join(words[4:]))

        def _model(self, name: str, revision: str) -> None:
            if commit := self._commit(name, revision):
                siblings = [{"rfilename": file} for file in hub.files()]
                body = json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
                self._send(200, body=body, headers={"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, file: str) -> None:
            commit = self._commit(name, revision)
            if commit and file in hub.files():
                body = (hub.folder / file).read_bytes()
                etag = hashlib.sha256(body).hexdigest()
                self._send(200, body=body, headers={"X-Repo-Commit": commit, "ETag": f'"{etag}"'})
            elif commit:
                self._send(404, "EntryNotFound")

        def _commit(self, name: str, revision: str) -> str | None:
            """The revision's commit; None after an answer that there is none."""
            if hub.refusal:
                self._send(*hub.refusal)
            elif name != hub.name:
                self._send(404, "RepoNotFound")
            elif revision in hub.revisions or revision in hub.revisions.values():
                return hub.revisions.get(revision, revision)
            else:
                self._send(404, "RevisionNotFound")
            return None

        def _send(
            self, status: int, code: str = "", body: bytes = b"", headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
