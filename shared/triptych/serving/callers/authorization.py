"""What callers may: which roles an RPC is for, and whose role a credential proves.

Nobody is asked for anything until a source of credentials is switched on: API keys, tokens or the names of
client certificates. From then on every RPC needs one, those of health too unless the settings open them, and
one that is not in RPCS is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc.aio

from triptych.errors import StartError, TriptychError, permission_denied, unauthenticated
from triptych.serving.callers.caller import ROLES, Caller, Role, matches
from triptych.serving.callers.keys import PREFIX, find_key, read_keys
from triptych.serving.callers.limits import limited, read_limits
from triptych.serving.reloading import reloaded_file

if TYPE_CHECKING:
    from triptych.serving.callers.tokens import Tokens
    from triptych.serving.settings import CallerOptions

Context = grpc.aio.ServicerContext[Any, Any]

_ALL: Final = frozenset[Role](ROLES)
CLIENT: Final = frozenset[Role](["client"])
_COORDINATOR: Final = frozenset[Role](["coordinator"])
_OPERATOR: Final = frozenset[Role](["operator"])
_WATCHERS: Final = frozenset[Role](["client", "operator"])
_STAGE_WATCHERS: Final = frozenset[Role](["coordinator", "operator"])

HEALTH = "/grpc.health.v1.Health/"

RPCS: Final[Mapping[str, frozenset[Role]]] = {
    "/triptych.v1.ImageGenerationService/Generate": CLIENT,
    "/triptych.v1.ImageGenerationService/GenerateImages": CLIENT,
    "/triptych.v1.ImageGenerationService/GetModel": _WATCHERS,
    "/triptych.v1.FleetService/GetFleet": _OPERATOR,
    "/triptych.v1.TextEncoderService/Encode": _COORDINATOR,
    "/triptych.v1.TextEncoderService/GetModel": _STAGE_WATCHERS,
    "/triptych.v1.DenoiserService/Predict": _COORDINATOR,
    "/triptych.v1.DenoiserService/PutConditioning": _COORDINATOR,
    "/triptych.v1.DenoiserService/GetModel": _STAGE_WATCHERS,
    "/triptych.v1.VaeCodecService/Decode": _COORDINATOR,
    "/triptych.v1.VaeCodecService/Encode": _COORDINATOR,
    "/triptych.v1.VaeCodecService/GetModel": _STAGE_WATCHERS,
    "/triptych.v1.SharedMemoryService/HoldRegion": _COORDINATOR,
    "/externalscaler.ExternalScaler/IsActive": _OPERATOR,
    "/externalscaler.ExternalScaler/StreamIsActive": _OPERATOR,
    "/externalscaler.ExternalScaler/GetMetricSpec": _OPERATOR,
    "/externalscaler.ExternalScaler/GetMetrics": _OPERATOR,
    f"{HEALTH}Check": _ALL,
    f"{HEALTH}Watch": _ALL,
    f"{HEALTH}List": _ALL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ALL,
}
"""Which roles each RPC is for."""


class Authorization:
    """Knows callers by their credentials, and what each may call."""

    def __init__(self, options: CallerOptions) -> None:
        """Raises StartError for settings that do not go together and a file that cannot be read."""
        if options.limits_file and not (options.jwks or options.certificate_role):
            raise StartError(
                "--limits-file is for tokens and certificates: it needs --jwks or --certificate-role. What a "
                "key may have is in --keys-file"
            )
        self._limits = (
            None if options.limits_file is None else reloaded_file(options.limits_file, read_limits)
        )
        self._open_health = options.open_health
        self._keys = None if options.keys_file is None else reloaded_file(options.keys_file, read_keys)
        self._tokens = _tokens(options)
        self._certificate_roles = [_pattern_and_role(text) for text in options.certificate_role]

    @classmethod
    def of(cls, options: CallerOptions) -> Authorization | None:
        """None where no source of credentials is switched on. Raises StartError."""
        sources = (options.keys_file, options.jwks, options.certificate_role)
        return cls(options) if any(sources) else None

    async def authorize(self, method: str, context: Context) -> Caller | None:
        """Who calls a method that it may call; None for one that is open to everybody.

        Raises:
            TriptychError: UNAUTHENTICATED without a credential or with a wrong one, PERMISSION_DENIED if
                the method is for others.
        """
        if self._open_health and method.startswith(HEALTH):
            return None
        caller = await self._caller(context)
        allowed = RPCS.get(method, frozenset())
        if not caller.roles & allowed:
            raise _permission_denied(method, caller, allowed)
        return caller

    async def _caller(self, context: Context) -> Caller:
        """By what was sent with the call, else by its connection's certificate."""
        text = _sent_credential(context.invocation_metadata() or ())
        if text is not None:
            if text.startswith(PREFIX) or self._tokens is None:
                return self._key_caller(text)
            return self._limited(await self._tokens.caller(text))
        caller = self._certificate_caller(context) if self._certificate_roles else None
        if caller is None:
            raise unauthenticated(f"this server asks who calls, and the call does not say: {self._wanted()}")
        return self._limited(caller)

    def _limited(self, caller: Caller) -> Caller:
        return caller if self._limits is None else limited(caller, self._limits.latest())

    def _key_caller(self, text: str) -> Caller:
        if self._keys is None:
            raise unauthenticated(f"this server takes no API keys: {self._wanted()}")
        key = find_key(text, self._keys.latest())
        if key is None:
            raise unauthenticated("the API key is none of those that this server knows, or it was revoked")
        if key.expires is not None and key.has_expired():
            raise unauthenticated(f"the API key {key.id} has expired, at {key.expires:%Y-%m-%dT%H:%M:%SZ}")
        return key.caller()

    def _certificate_caller(self, context: Context) -> Caller | None:
        """Of a verified client certificate: roles of all its names, under the first that has one."""
        names = certificate_names(context.auth_context())
        found = [
            (name, role)
            for name in names
            for pattern, role in self._certificate_roles
            if matches(name, [pattern])
        ]
        if found:
            return Caller("certificate", found[0][0], found[0][0], frozenset(role for _, role in found))
        if names:
            raise unauthenticated(
                f"the client certificate is of {', '.join(map(repr, names[:5]))}, which has no role here: "
                f"{self._wanted()}"
            )
        return None

    def _wanted(self) -> str:
        """What the server takes, in words."""
        sent = [
            word
            for word, on in (("API key", self._keys), ("signed token (JWT)", self._tokens))
            if on is not None
        ]
        ways = [f"send an {' or a '.join(sent)} as the metadata 'authorization: Bearer ...'"] if sent else []
        if self._certificate_roles:
            ways.append("connect with a client certificate that has a role")
        return ", or ".join(ways).replace("an signed", "a signed")


def certificate_names(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """The names in a connection's verified client certificate: alternative ones, else the common one."""
    if list(auth_context.get("transport_security_type", ())) != [b"ssl"]:
        return []
    names = auth_context.get("x509_subject_alternative_name") or auth_context.get("x509_common_name") or ()
    return [name.decode(errors="replace") for name in names]


def check_certificate_role(text: str) -> str:
    """Raises ValueError unless it reads as a name in certificates and its role."""
    _pattern_and_role(text)
    return text


def _pattern_and_role(text: str) -> tuple[str, Role]:
    name, _, role = text.rpartition("=")
    for known in ROLES:
        if name and role == known:
            return name, known
    raise ValueError(f"'{text}' is not NAME=ROLE with one of the roles {', '.join(ROLES)}")


def _sent_credential(metadata: Any) -> str | None:
    """The text after Bearer, or the x-api-key. Raises TriptychError for several, or another scheme."""
    sent = [(key, value) for key, value in metadata if key in ("authorization", "x-api-key")]
    if not sent:
        return None
    if len(sent) > 1:
        raise unauthenticated("the call has several credentials: send one, 'authorization' or 'x-api-key'")
    (key, value), *_ = sent
    if key == "x-api-key":
        return str(value)
    scheme, _, text = str(value).partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise unauthenticated(
            "the metadata 'authorization' is 'Bearer ' and a key or token, and nothing else"
        )
    return text.strip()


def _permission_denied(method: str, caller: Caller, allowed: frozenset[Role]) -> TriptychError:
    service, _, rpc = method.strip("/").rpartition("/")
    has = " and ".join(role for role in ROLES if role in caller.roles) or "no role"
    needed = " or ".join(role for role in ROLES if role in allowed) or "nobody"
    return permission_denied(f"{caller} has the role {has}; {rpc} of {service} is for the role {needed}")


def _tokens(options: CallerOptions) -> Tokens | None:
    if options.jwks is None:
        return None
    from triptych.serving.callers.tokens import Tokens  # needs PyJWT

    return Tokens(options)
