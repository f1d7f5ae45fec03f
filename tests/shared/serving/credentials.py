"""Credentials of every kind for tests: a keys file, signed tokens, certificates."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from triptych.serving.callers.caller import Role
from triptych.serving.callers.keys import Key, KeysFile, new_key

ISSUER, AUDIENCE = "https://login.example", "triptych"
PEM, PKCS8, PLAIN = (
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {text}"),)


def write_keys(file: Path, keys: Sequence[Key]) -> None:
    """As `triptych keys` does, whole."""
    new = file.with_suffix(".new")
    new.write_bytes(KeysFile(keys=list(keys)).write())
    new.replace(file)


def expired_key(name: str, role: Role) -> tuple[str, Key]:
    return new_key(name, [role], expires=datetime.now(UTC) - timedelta(seconds=1))


class Signer:
    """Who signs tokens."""

    def __init__(self, kid: str = "first") -> None:
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())

    def jwk(self) -> dict[str, Any]:
        numbers = self.key.public_key().public_numbers()
        x, y = (_base64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid, "x": x, "y": y}

    def token(self, roles: object = ("client",), **changed: Any) -> str:
        claims = self.claims(roles) | changed
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, self.key, "ES256", {"kid": self.kid})

    def claims(self, roles: object = ("client",)) -> dict[str, Any]:
        names = list(roles) if isinstance(roles, tuple) else roles
        return {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": int(time.time()) + 600,
            "roles": names,
        }

    def unsigned(self) -> str:
        return jwt.encode(self.claims(("client", "operator", "coordinator")), "", "none", {"kid": self.kid})

    def signed_with_the_public_key(self) -> str:
        """The old trick: HMAC with what everybody knows, by hand, since the library refuses to do it."""
        public = self.key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        import hmac

        head = {"alg": "HS256", "typ": "JWT", "kid": self.kid}
        parts = [_base64(json.dumps(part).encode()) for part in (head, self.claims(("client",)))]
        signature = hmac.new(public, ".".join(parts).encode(), "sha256").digest()
        return ".".join([*parts, _base64(signature)])


def write_jwks(file: Path, *signers: Signer) -> None:
    file.write_text(json.dumps({"keys": [signer.jwk() for signer in signers]}))


class Authority:
    """A root that signs certificates."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = _builder(self._name, self._name, self._key).add_extension(constraints, critical=True)
        self.root = builder.sign(self._key, hashes.SHA256()).public_bytes(PEM)

    def issue(self, common_name: str, alternative: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
        """The key and the certificate; `alternative` has "dns" and "uri" names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self._name, key)
        kinds = {"dns": x509.DNSName, "uri": x509.UniformResourceIdentifier}
        if alternative:
            names = x509.SubjectAlternativeName([kinds[kind](name) for kind, name in alternative.items()])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return key.private_bytes(PEM, PKCS8, PLAIN), certificate.public_bytes(PEM)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> Any:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
    )


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
