"""`triptych certs`: certificates for a test fleet, and when they expire."""

from datetime import timedelta

from triptych.errors import StartError
from triptych_local.commands.settings import CertsSettings
from triptych_local.output import say


async def certs(asked: CertsSettings) -> None:
    """Makes or renews them unless they are only to be shown; a line about each. Raises StartError."""
    try:
        from triptych_local.certificate_set import CertificateSet
    except ModuleNotFoundError as error:
        raise StartError(
            "certificates are made by the package cryptography: pip install 'triptych[tls]'"
        ) from error
    found = CertificateSet(asked.folder, asked.domain)
    if not asked.show:
        found.renew(timedelta(days=asked.days), asked.name)
    say("\n".join(found.lines()))
