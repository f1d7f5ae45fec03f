"""Whether a service serves: python -m triptych.serving.health [ADDRESS], for a container's health check.

An address that begins with http:// or https:// is of a service whose health is a page, the others speak gRPC.
Without one it is TRIPTYCH_HEALTH_LISTEN of the environment, or TRIPTYCH_LISTEN.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triptych.serving.channels import Tls, open_channel

HTTP = ("http://", "https://")
ANSWER_SECONDS = 2.0
"""How long a service may take to say how it is."""


async def serves(address: str, tls: Tls | None = None) -> bool:
    """Whether a server answers at the address and says that it serves."""
    if address.startswith(HTTP):
        return await has_page(address)
    async with open_channel(address, tls) as channel:
        try:
            response = await health(channel)
        except grpc.RpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def health(channel: grpc.aio.Channel) -> health_pb2.HealthCheckResponse:
    """What a server says of all its services. Raises AioRpcError."""
    request = health_pb2.HealthCheckRequest()
    return await health_pb2_grpc.HealthStub(channel).Check(request, timeout=ANSWER_SECONDS)


async def has_page(address: str) -> bool:
    """Whether http://host:port/health is 200. Nothing is sent that a wrong server could use: https is not
    asked for its certificate, as the probes of Kubernetes do not. Raises ValueError for what is no address.
    """
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"'{address}' is not {scheme}://host:port")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            secured = _without_certificates() if scheme == "https" else None
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=secured)
            try:
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _without_certificates() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main() -> None:
    """Exits with 0 if it serves, with 1 and a line if it does not, with 2 if no address is known."""
    listening = os.environ.get("TRIPTYCH_HEALTH_LISTEN") or os.environ.get("TRIPTYCH_LISTEN")
    address = sys.argv[1] if len(sys.argv) > 1 else listening
    if not address:
        print("give an address, or TRIPTYCH_HEALTH_LISTEN or TRIPTYCH_LISTEN", file=sys.stderr)
        sys.exit(2)
    try:
        served = asyncio.run(serves(address))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if not served:
        print(f"{address} does not serve", file=sys.stderr)
    sys.exit(not served)


if __name__ == "__main__":
    main()
