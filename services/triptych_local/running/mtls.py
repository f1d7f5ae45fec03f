"""Services on this machine that speak mTLS to each other and to clients, with a set of certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.errors import StartError
from triptych_local.output import note
from triptych_local.running.processes import Program

if TYPE_CHECKING:
    from triptych_local.certificate_set import CertificateSet

LIFE = timedelta(days=30)
RENEWAL_SECONDS = 3600.0

HOLDERS = {
    "triptych_text_encoder": "text-encoder",
    "triptych_denoiser": "denoiser",
    "triptych_vae_codec": "vae-codec",
    "triptych_coordinator": "coordinator",
    "triptych_local.running.fused": "coordinator",
}
"""Whose certificate a program has."""


def with_mtls(programs: Sequence[Program], certificates: CertificateSet, health: Path) -> list[Program]:
    """The programs with certificates. Stages take calls of the coordinator alone.

    health: a folder for sockets, on which each says without TLS whether it serves.
    """
    return [
        _with_mtls(program, certificates, f"unix:{health}/{number}")
        for number, program in enumerate(programs)
    ]


def _with_mtls(program: Program, certificates: CertificateSet, health: str) -> Program:
    holder = HOLDERS[program.module]
    files = certificates.of(holder)
    roots = str(files.roots)
    options = [
        *("--tls-certificate", str(files.certificate)),
        *("--tls-key", str(files.key)),
        *("--tls-client-roots", roots),
        *("--health-listen", health),
    ]
    if program.module == "triptych_coordinator":
        options += ["--tls-roots", roots]
    elif holder != "coordinator":
        options += ["--tls-allowed-names", certificates.uri("coordinator")]
    return replace(program, options=[*program.options, *options], health_address=health)


async def keep_renewed(certificates: CertificateSet) -> None:
    """Renews the certificates before they expire; the services take the new ones by themselves."""
    while True:
        await asyncio.sleep(RENEWAL_SECONDS)
        try:
            if certificates.renew_if_old(LIFE):
                note(f"renewed the certificates in {certificates.folder}")
        except StartError as error:  # the next hour is early enough
            note(f"warning: {error}")
