"""API keys as clients send them: where they come from, with which calls they go, and where they must not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from triptych.serving.addresses import is_local
from triptych.serving.channels import target

Metadata = tuple[tuple[str, str], ...]

API_KEY_VARIABLE = "TRIPTYCH_API_KEY"


def read_key(data: bytes) -> str:
    """The key or token in a file, which may end with a line break. Raises ValueError without a word of it."""
    text = data.decode(errors="replace").strip()
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("it is not one API key or token: printable ASCII without spaces")
    return text


def chosen_key(api_key: str | None) -> str | None:
    """The key that was given, else that of the environment; None without one. Raises ValueError."""
    text = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
    if not text.strip():
        return None
    try:
        return read_key(text.encode())
    except ValueError as error:
        raise ValueError(f"the API key (api_key or {API_KEY_VARIABLE}): {error}") from None


def check_confidential(address: str, has_tls: bool) -> None:
    """Raises ValueError where a key would pass a network that others can listen to.

    `address` as gRPC has it: host:port or unix:/path.
    """
    if not has_tls and not is_local(address):
        raise ValueError(
            f"an API key is not sent to {address} without TLS: whoever listens in could use it. Use https:// "
            "or certificates, or say insecure where the network is nobody else's"
        )


class KeyedChannel:
    """A channel for generated stubs, of grpc or grpc.aio, whose calls carry an API key."""

    def __init__(self, channel: Any, key: Callable[[], str]) -> None:
        """`key` is asked for each call, since it may be replaced."""
        self._channel = channel
        self._key = key

    def unary_unary(self, method: str, *codecs: Any, **others: Any) -> Callable[..., Any]:
        """As the channel's."""
        return self._carrying(self._channel.unary_unary(method, *codecs, **others))

    def unary_stream(self, method: str, *codecs: Any, **others: Any) -> Callable[..., Any]:
        """As the channel's."""
        return self._carrying(self._channel.unary_stream(method, *codecs, **others))

    def _carrying(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, /, *, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
            key = ("authorization", f"Bearer {self._key()}")
            return usual(request, timeout=timeout, metadata=(*(metadata or ()), key))

        return call


def keyed(channel: Any, key: str | None) -> Any:
    """The channel, whose calls carry the key if there is one."""
    return channel if key is None else KeyedChannel(channel, lambda: key)


def key_for(address: str, confidential: bool, api_key: str | None) -> str | None:
    """The key that goes to an address. Raises ValueError where it must not go, or it is none."""
    chosen = chosen_key(api_key)
    if chosen is not None:
        check_confidential(target(address), confidential)
    return chosen
