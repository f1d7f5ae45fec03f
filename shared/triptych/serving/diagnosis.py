"""Why a client's call failed, in a sentence: of TLS gRPC says little, and that in OpenSSL's words.

What is wrong there is found by a TLS handshake of its own, with the same files.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import grpc

from triptych.errors import TriptychError, from_rpc_error
from triptych.serving.addresses import unix_path
from triptych.serving.channels import Tls, target

SECONDS = 2.0
"""How long connecting, and each answer, may take."""

_SAID = ("handshake failed", "verification check failed", "Socket closed", "Connection reset")
"""What gRPC says where client and server do not agree on TLS, among other reasons."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""HTTP/2's first words and empty SETTINGS, to which a server answers with its own."""
_EXPIRED, _NOT_YET_VALID, _OTHER_NAME, _OTHER_IP = 10, 9, 62, 64
_UNTRUSTED = (18, 19, 20, 21)


@contextlib.contextmanager
def rpc_errors() -> Iterator[None]:
    """Raises TriptychError for an RpcError of the block, with what to set if a message was too large."""
    try:
        yield
    except grpc.RpcError as error:
        raise _with_what_to_set(from_rpc_error(error)) from error


def _with_what_to_set(error: TriptychError) -> TriptychError:
    if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or "larger than max" not in error.message:
        return error
    message = (
        f"{error.message}: give the client a larger max_message_bytes, the coordinator a larger"
        " --max-message-bytes, or ask for fewer or smaller pictures at once"
    )
    return TriptychError(error.code, message, error.details)


def explained_by_tls(error: TriptychError, address: str | None, tls: Tls | None) -> TriptychError:
    """A call's error; UNAUTHENTICATED if it is TLS that keeps the server from being reached. Blocks."""
    doubtful = error.code is grpc.StatusCode.UNAVAILABLE and any(words in error.message for words in _SAID)
    if address is None or not doubtful:
        return error
    why = why_no_connection(address, tls)
    return error if why is None else TriptychError(grpc.StatusCode.UNAUTHENTICATED, why)


def why_no_connection(address: str, tls: Tls | None) -> str | None:
    """What is wrong with TLS, or None if nothing is, or nobody listens. Blocks for seconds at most."""
    try:
        with _connected(address) as connection:
            return _why_not_plain(address, connection) if tls is None else _why(address, connection, tls)
    except OSError:
        return None


def _connected(address: str) -> socket.socket:
    if address.startswith("unix:"):
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(SECONDS)
            connection.connect(unix_path(address))
            stack.pop_all()
            return connection
    host, _, port = target(address).removeprefix("dns:").lstrip("/").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), SECONDS)


def _why_not_plain(address: str, connection: socket.socket) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            return f"the server at {address} speaks TLS, and is called without: name its roots"
    except OSError:
        return None


def _why(address: str, connection: socket.socket, tls: Tls) -> str | None:
    context, server = _context(tls), f"the server at {address}"
    name = tls.server_name or _host(address)
    try:
        with context.wrap_socket(connection, server_hostname=name) as secured:
            if _answers(secured):
                return None
    except ssl.SSLCertVerificationError as error:
        return _wrong_certificate(error, address, name, tls)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return f"{server} does not speak TLS"
        return f"{server} and this client do not agree on TLS: {error.reason}"
    except (ConnectionError, TimeoutError):
        return f"{server} does not speak TLS"
    if tls.material.latest().files.certificate is None:
        return f"{server} closed the connection: it asks for a client certificate, and none is given"
    if _has_expired(tls):
        return f"the client certificate in {tls.material.latest().files.certificate} has expired"
    return (
        f"{server} closed the connection: it does not take the client certificate in "
        f"{tls.material.latest().files.certificate}, which must come from a root among its --tls-client-roots"
    )


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    files = tls.material.latest().files
    if files.roots is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(files.roots)
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


def _host(address: str) -> str:
    if address.startswith("unix:"):
        return "localhost"
    return target(address).rpartition(":")[0].rpartition("/")[2].strip("[]")


def _answers(secured: ssl.SSLSocket) -> bool:
    """Whether the server goes on after the handshake, at whose end it looks at the client's certificate."""
    try:
        secured.sendall(_PREFACE)
        return bool(secured.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def _wrong_certificate(error: ssl.SSLCertVerificationError, address: str, name: str, tls: Tls) -> str:
    certificate = f"the certificate of the server at {address}"
    if error.verify_code == _EXPIRED:
        return f"{certificate} has expired, or one between it and its root"
    if error.verify_code == _NOT_YET_VALID:
        return f"{certificate} is not valid yet; or this machine's clock is late"
    if error.verify_code in _UNTRUSTED:
        return f"{certificate} does not come from {_roots(tls)}"
    if error.verify_code in (_OTHER_NAME, _OTHER_IP):
        names = ", ".join(_names(address, tls)) or "no DNS name or IP address"
        return f"{certificate} is not for '{name}': it has {names}"
    return f"{certificate} is refused: {error.verify_message}"


def _roots(tls: Tls) -> str:
    file = tls.material.latest().files.roots
    return "a root that gRPC knows: name the file of its roots" if file is None else f"a root in {file}"


def _names(address: str, tls: Tls) -> list[str]:
    """What a server's certificate, which is trusted, says that it is for."""
    context = _context(tls)
    context.check_hostname = False
    try:
        with _connected(address) as connection, context.wrap_socket(connection) as secured:
            said = secured.getpeercert() or {}
    except OSError:
        return []
    names: tuple[tuple[str, str], ...] = said.get("subjectAltName", ())  # type: ignore[assignment]
    return [name for _, name in names]


def _has_expired(tls: Tls) -> bool:
    """Whether a handshake in memory that trusts nothing but the client's certificate finds it too old."""
    files = tls.material.latest().files
    if files.certificate is None:
        return False
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    asking.load_verify_locations(files.certificate)
    asking.load_cert_chain(files.certificate, files.key)
    showing = _context(tls)
    showing.check_hostname, showing.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = showing.wrap_bio(back, there), asking.wrap_bio(there, back, server_side=True)
    try:
        for side in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_code == _EXPIRED
    return False
