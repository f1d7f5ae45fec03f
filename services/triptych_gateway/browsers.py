"""What keeps other people's pages from using a gateway through somebody's browser."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych_gateway.errors import HttpError

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guarded:
    """An application that pages of other origins cannot call, and whose answers say what they are not.

    origins: whose pages may. local: nobody but this host can connect, so that a name other than localhost in
    the header Host is a stranger's, who makes it stand for this host (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], local: bool) -> None:
        self._app = app
        self._origins = origins
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls it."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(scope)
        await (refused.response() if refused else self._app)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> HttpError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        known = {origin.partition("://")[2] for origin in self._origins}
        if self._local and not _stands_for_this_host(host) and host not in known:
            return HttpError(403, "the header Host names another host: give --public-url", "forbidden_host")
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or origin is None or origin in self._origins:
            return None
        if origin.partition("://")[2] == host:
            return None
        return HttpError(403, "pages of this origin may not call: give --cors-origin", "forbidden_origin")


def _stands_for_this_host(host: str) -> bool:
    """Whether a Host is localhost or an address, which nobody can make stand for another."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "" or name.lower() == "localhost" or name.lower().endswith(".localhost")
    return True
