"""TLS: certificates, keys and roots in files that may be replaced at any time, and what gRPC makes of them.

Kubernetes swaps a symbolic link above its files, others write one file after the other. What does not fit
together yet is not taken: what was read before stays, and the log says why.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from triptych.errors import StartError
from triptych.serving.reloading import Reloaded
from triptych.serving.settings import ListenOptions

CHECK_SECONDS = 1.0
"""How often files are looked at, at most, while somebody connects or calls."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one side: the roots that it trusts, its certificate chain and the key of that.

    Without roots a client trusts those that gRPC knows, and a server asks for no client certificate. A client
    without a certificate shows none.
    """

    roots: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key go together: one of them is missing")

    def paths(self) -> list[Path]:
        """Those that there are."""
        return [file for file in (self.certificate, self.roots, self.key) if file is not None]


@dataclass(frozen=True)
class TlsMaterial:
    """What is in the files."""

    files: TlsFiles
    roots: bytes | None
    certificate: bytes | None
    key: bytes | None


def read_material(files: TlsFiles) -> TlsMaterial:
    """Reads the files. Raises StartError if one cannot be read, is no PEM, or the key is another's."""
    material = _read(files)
    for file, data in ((files.roots, material.roots), (files.certificate, material.certificate)):
        if file is not None and data is not None:
            _check_certificates(file, data)
    if files.certificate is not None and files.key is not None:
        _check_pair(files.certificate, files.key)
    if _read(files) != material:
        raise StartError(f"{files.certificate or files.roots} changes while it is read")
    return material


def _read(files: TlsFiles) -> TlsMaterial:
    return TlsMaterial(files, *(_bytes(file) for file in (files.roots, files.certificate, files.key)))


def _bytes(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read {file}: {error.strerror}") from error


def _check_certificates(file: Path, data: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii", "replace"))
    except (ssl.SSLError, ValueError) as error:  # ValueError: it is empty
        raise StartError(f"{file} holds no certificate in PEM form, or half of one") from error


def _check_pair(certificate: Path, key: Path) -> None:
    def refuse_encrypted() -> str:
        raise ValueError("is encrypted")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, refuse_encrypted)
    except ValueError as error:
        if "encrypted" in str(error):
            raise StartError(f"the key in {key} is encrypted: give one without a password") from error
        raise StartError(f"{key} holds no private key in PEM form, or half of one") from error
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"the key in {key} is not that of the certificate in {certificate}") from error
        raise StartError(f"{key} holds no private key in PEM form, or half of one") from error
    except OSError as error:
        raise StartError(f"cannot read {key}: {error.strerror}") from error


def reloaded_tls(files: TlsFiles) -> Reloaded[TlsMaterial]:
    """What is in the files, read again when they change. Raises StartError if they cannot be used."""
    return Reloaded(files.paths(), partial(read_material, files), CHECK_SECONDS)


def server_files(options: ListenOptions) -> TlsFiles | None:
    """Those of a service that speaks TLS."""
    if options.tls_certificate is None:
        return None
    return TlsFiles(options.tls_client_roots, options.tls_certificate, options.tls_key)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """TLS 1.2 or newer; with roots, clients must show a certificate. New connections get what is newest.

    Raises StartError if the files cannot be used.
    """
    reloaded = reloaded_tls(files)
    given = reloaded.latest()
    giving = threading.Lock()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        with giving:
            latest = reloaded.latest()
            if latest is given:
                return None
            given = latest
            return _server_configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(given),
        fetch,  # type: ignore[arg-type]  # None is for no change
        require_client_authentication=files.roots is not None,
    )


def _server_configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    pairs = [(material.key, material.certificate)]
    return grpc.ssl_server_certificate_configuration(pairs, material.roots)  # type: ignore[arg-type]


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """The same for servers that are not gRPC's and ask for no client certificate.

    Raises StartError if the files cannot be used.
    """
    reloaded = Reloaded(files.paths(), partial(_context, files), CHECK_SECONDS)
    first = reloaded.latest()

    def use_newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = reloaded.latest()

    first.sni_callback = use_newest
    return first


def _context(files: TlsFiles) -> ssl.SSLContext:
    assert files.certificate is not None
    read_material(files)  # which says what is wrong
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:  # SSLError is one
        raise StartError(f"{files.certificate} changes while it is read") from error
    return context


def channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    """TLS 1.2 or newer."""
    return grpc.ssl_channel_credentials(material.roots, material.key, material.certificate)
