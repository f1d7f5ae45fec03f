"""Signed tokens (JWT, RFC 7519) that say who calls, checked with the public keys (JWKS) of who signs them."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from triptych.errors import StartError, TriptychError, unauthenticated, unavailable
from triptych.serving.callers.caller import ROLES, Caller
from triptych.serving.reloading import reloaded_file

try:
    import jwt
except ImportError as error:
    raise StartError("tokens (JWT) need the extra jwt: pip install 'triptych[jwt]'") from error

if TYPE_CHECKING:
    from triptych.serving.settings import CallerOptions

log = logging.getLogger(__name__)

Keys = Mapping[str | None, jwt.PyJWK]
"""Public keys by their kid."""

FRESH_SECONDS = 300.0
"""Keys of an address are fetched again when they are older."""
SOONEST_SECONDS = 10.0
"""And never sooner than that, whatever kid a stranger's token names."""
FETCH_SECONDS = 5.0
MAX_JWKS_BYTES = 1 << 20
_LONGEST_NAME = 200
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class Tokens:
    """Knows callers by their tokens."""

    def __init__(self, options: CallerOptions) -> None:
        """Raises StartError for settings that do not go together and a file that cannot be read."""
        if not (options.jwks and options.jwt_issuer and options.jwt_audience):
            raise StartError("--jwks needs --jwt-issuer and --jwt-audience: else any token would do")
        self._issuer = options.jwt_issuer
        self._audience = options.jwt_audience
        self._algorithms = list(options.jwt_algorithms)
        self._roles_claim = options.jwt_roles_claim
        self._groups_claim = options.jwt_groups_claim
        self._leeway = options.jwt_leeway_seconds
        self._file = None if "://" in options.jwks else reloaded_file(Path(options.jwks), read_jwks)
        self._fetched = _Fetched(options.jwks) if self._file is None else None

    async def caller(self, text: str) -> Caller:
        """Whose token it is.

        Raises:
            TriptychError: UNAUTHENTICATED for a token that is not right, UNAVAILABLE while there are no keys.
        """
        try:
            kid = jwt.get_unverified_header(text).get("kid")
        except jwt.InvalidTokenError:
            raise _wrong("cannot be read: it is neither an API key (tk_...) nor a JWT") from None
        key = await self._key(kid)
        try:
            claims = jwt.decode(
                text,
                key,
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise _wrong(self._explained(error)) from None
        return self._caller_of(claims)

    def _caller_of(self, claims: Mapping[str, Any]) -> Caller:
        subject = str(claims["sub"])[:_LONGEST_NAME]
        said = _words(claims.get(self._roles_claim))
        return Caller(
            *("token", f"of {self._issuer!r}, subject {subject!r}", subject),
            roles=frozenset(role for role in ROLES if role in said),
            groups=frozenset(_words(claims.get(self._groups_claim))),
        )

    async def _key(self, kid: str | None) -> jwt.PyJWK:
        if self._file is not None:
            key = _chosen(self._file.latest(), kid)
        else:
            assert self._fetched is not None
            key = await self._fetched.key(kid)
        if key is None:
            named = (
                "names no key (kid), and there are several" if kid is None else "names an unknown key (kid)"
            )
            raise _wrong(named)
        return key

    def _explained(self, error: jwt.PyJWTError) -> str:
        """Why a token is wrong, without a word of it."""
        match error:
            case jwt.ExpiredSignatureError():
                return "has expired"
            case jwt.ImmatureSignatureError():
                return "is not valid yet"
            case jwt.InvalidIssuerError():
                return f"is of another issuer; this server knows {self._issuer!r}"
            case jwt.InvalidAudienceError():
                return f"is for another audience; this server is {self._audience!r}"
            case jwt.MissingRequiredClaimError():
                return f"has no claim {error.claim}"
            case jwt.InvalidAlgorithmError():
                return (
                    f"is signed in another way than with one of {', '.join(self._algorithms)}, or its key's"
                )
            case jwt.InvalidSignatureError():
                return "has a wrong signature"
        return "is not valid"


def _words(claim: object) -> list[str]:
    """Those of a claim that is a list of them, or one text with spaces between."""
    listed = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return [word for word in listed if isinstance(word, str)]


class _Fetched:
    """The keys at an address, fetched when they are needed but not too often; old ones serve meanwhile."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in _LOCAL_HOSTS
        if not (parts.hostname and (parts.scheme == "https" or local)) or parts.username or parts.password:
            raise StartError(
                f"--jwks: {parts.scheme}://{parts.hostname} must be https://, without a password"
            )
        self._url = url
        self._keys: Keys = {}
        self._fetched_at = self._tried_at = -float("inf")
        self._lock = asyncio.Lock()

    async def key(self, kid: str | None) -> jwt.PyJWK | None:
        """The key, fetched if it is not known; None if there is none. Raises UNAVAILABLE without any keys."""
        if time.monotonic() - self._fetched_at > FRESH_SECONDS or _chosen(self._keys, kid) is None:
            await self._fetch()
        if not self._keys:
            raise unavailable("the keys of who signs tokens cannot be fetched; try again", SOONEST_SECONDS)
        return _chosen(self._keys, kid)

    async def _fetch(self) -> None:
        """Once, however many calls wait for it, and not if that was just tried."""
        async with self._lock:
            if time.monotonic() - self._tried_at < SOONEST_SECONDS:
                return
            try:
                self._keys = read_jwks(await asyncio.to_thread(_downloaded, self._url))
                self._fetched_at = time.monotonic()
            except (OSError, ValueError) as error:
                log.error("cannot fetch the JWKS of %s: %s", urlsplit(self._url).hostname, error)
            self._tried_at = time.monotonic()


def read_jwks(data: bytes) -> Keys:
    """The public keys for signatures in a JWKS. Raises ValueError that says nothing of what is there."""
    try:
        keys = json.loads(data)["keys"]
        found = [jwt.PyJWK(key) for key in keys if _may_sign(key)]
    except (ValueError, TypeError, KeyError, AttributeError, jwt.PyJWTError):
        raise ValueError("it is no JWKS: a JSON object with the public 'keys' of who signs tokens") from None
    by_id = {key.key_id: key for key in found}
    if not by_id or len(by_id) < len(found):
        raise ValueError("a JWKS has at least one public key for signatures, each with a 'kid' of its own")
    return by_id


def _may_sign(key: Mapping[str, Any]) -> bool:
    """Whether it is a public key that is for signatures. A shared secret (oct) is none."""
    return key["kty"] in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig" and "d" not in key


def _chosen(keys: Keys, kid: str | None) -> jwt.PyJWK | None:
    """The key of that name, or the only one if the token names none."""
    if kid is None and len(keys) == 1:
        return next(iter(keys.values()))
    return keys.get(kid)


def _wrong(what: str) -> TriptychError:
    return unauthenticated(f"the token {what}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """An address elsewhere is not the one that the operator trusts."""


def _downloaded(url: str) -> bytes:
    """Raises OSError or ValueError."""
    with urllib.request.build_opener(_NoRedirects).open(url, timeout=FETCH_SECONDS) as response:
        data: bytes = response.read(MAX_JWKS_BYTES + 1)
    if len(data) > MAX_JWKS_BYTES:
        raise ValueError(f"it has more than {MAX_JWKS_BYTES} bytes")
    return data
