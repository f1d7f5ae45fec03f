"""How commands speak TLS to a coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from triptych.serving.settings import Options

if TYPE_CHECKING:
    from triptych.serving.channels import Tls


class ClientTls(Options):
    """How a command speaks TLS to the coordinator at --target, and by which key that knows it."""

    api_key_file: Path | None = Field(
        None,
        description="File with the API key for a coordinator that asks who calls. Default: the key in the "
        "variable TRIPTYCH_API_KEY.",
    )
    insecure: bool = Field(
        False, description="Send the key without TLS to another host, where the network is nobody else's."
    )

    tls_roots: Path | None = Field(
        None,
        description="With --target: PEM file with the roots of the coordinator's certificate; it is called "
        "with TLS then. Default: TLS for https:// alone, with the roots that gRPC has inside.",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with the certificate that is shown to a coordinator that asks for one."
    )
    tls_key: Path | None = Field(None, description="PEM file with its key.")
    tls_server_name: str | None = Field(
        None,
        description="The DNS name or IP address that the coordinator's certificate must have. Default: the "
        "host in --target; localhost for a Unix socket.",
    )

    @model_validator(mode="after")
    def _has_all_of_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("--tls-certificate and --tls-key go together: one of them is missing")
        return self

    @classmethod
    def of_folder(cls, folder: Path) -> Self | None:
        """What `triptych certs` made there for clients; None if it is not there."""
        files = {"tls_roots": "root.pem", "tls_certificate": "client.pem", "tls_key": "client.key"}
        found = {option: folder / file for option, file in files.items()}
        return cls.model_validate(found) if all(file.is_file() for file in found.values()) else None

    def of_client(self) -> dict[str, Any]:
        """As the keywords of AsyncClient. Raises StartError if the key's file cannot be read."""
        return {**self._of_tls(), "api_key": self.api_key(), "insecure": self.insecure}

    def api_key(self) -> str | None:
        """That of its file; None without one. Raises StartError if the file cannot be read."""
        if self.api_key_file is None:
            return None
        from triptych.serving.callers.sent_keys import read_key
        from triptych.serving.reloading import reloaded_file

        return reloaded_file(self.api_key_file, read_key).latest()

    def _of_tls(self) -> dict[str, Any]:
        return {
            "roots": self.tls_roots,
            "certificate": self.tls_certificate,
            "key": self.tls_key,
            "server_name": self.tls_server_name,
        }

    def at(self, address: str) -> Tls | None:
        """For an address. Raises ValueError or StartError."""
        from triptych.serving.channels import tls_of

        return tls_of(address, **self._of_tls())
