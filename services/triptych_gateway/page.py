"""The page: its built files, which web/ holds the sources of."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(__file__).parent / "static"

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""Scripts and styles are files of this gateway, and nothing else is asked for anything."""

HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
FOREVER = "public, max-age=31536000, immutable"
"""Of files whose names change with what is in them."""


def page_routes() -> list[BaseRoute]:
    """The page, and what it loads."""
    return [
        Route("/", page, methods=["GET"]),
        Mount("/assets", _Assets(directory=FILES / "assets")),
    ]


async def page(request: Request) -> Response:
    """GET /."""
    del request
    return FileResponse(FILES / "index.html", headers=HEADERS)


class _Assets(StaticFiles):
    """Scripts, styles and pictures."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["Cache-Control"] = FOREVER
        return response
