"""A folder with all certificates of a test fleet: a root of its own, each service's and a client's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from triptych.errors import StartError
from triptych.serving.credentials import CHECK_SECONDS, TlsFiles
from triptych_local.certificates import Certificate, issue, names_of, new_root

ROOT = "root"
HOLDERS = ("text-encoder", "denoiser", "vae-codec", "coordinator", "client")
HERE = ("localhost", "127.0.0.1", "::1")
ROOT_LIFE = timedelta(days=3650)


@dataclass(frozen=True)
class CertificateSet:
    """The folder: NAME.pem and NAME.key of the root and of each of HOLDERS.

    Who holds one is spiffe://DOMAIN/triptych-NAME, triptych-NAME and this host.
    """

    folder: Path
    domain: str = "triptych.local"

    def certificate(self, name: str) -> Path:
        """A PEM file."""
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """A PEM file for this user alone."""
        return self.folder / f"{name}.key"

    def uri(self, name: str) -> str:
        """As SPIFFE has it."""
        return f"spiffe://{self.domain}/triptych-{name}"

    def of(self, name: str) -> TlsFiles:
        """What a holder trusts and shows."""
        return TlsFiles(self.certificate(ROOT), self.certificate(name), self.key(name))

    def renew(self, life: timedelta, names: Sequence[str] = ()) -> None:
        """Writes new certificates for all holders, and a root if there is none that outlives them.

        They have `names`, DNS names, IP addresses or URIs, besides their own. What an older root signed stays
        trusted until that root ends. Raises StartError.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            root = self._root(life)
            for name in HOLDERS:
                own = (f"triptych-{name}", *HERE, self.uri(name))
                signed = issue(root, f"triptych-{name}", list(dict.fromkeys([*own, *names])), life)
                signed.write(self.certificate(name), self.key(name))
        except OSError as error:
            raise StartError(f"cannot write {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise StartError(f"cannot make the certificates: {error}") from error

    def renew_if_old(self, life: timedelta) -> bool:
        """Renews if one is missing or has less than a third of a life left, and says whether it did.

        Raises StartError.
        """
        files = [file(name) for file in (self.certificate, self.key) for name in (ROOT, *HOLDERS)]
        until = datetime.now(UTC) + life / 3
        if all(file.exists() for file in files) and all(self.read(name).expires > until for name in HOLDERS):
            return False
        self.renew(life)
        return True

    def read(self, name: str) -> Certificate:
        """A holder's, or the root. Raises StartError."""
        try:
            return Certificate.read(self.certificate(name), self.key(name))
        except FileNotFoundError as error:
            raise StartError(
                f"there is no {error.filename}: 'triptych certs {self.folder}' makes one"
            ) from error
        except OSError as error:
            raise StartError(f"cannot read {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise StartError(f"cannot read {self.certificate(name)}: {error}") from error

    def lines(self) -> list[str]:
        """A line about each certificate: its file, when it ends, who it is. Raises StartError."""
        now = datetime.now(UTC)
        lines = []
        for name in (ROOT, *HOLDERS):
            one = self.read(name)
            days = (one.expires - now) / timedelta(days=1)
            left = f"in {days:.0f} days" if days > 2 else f"in {24 * days:.0f} hours"
            ends = f"expires {one.expires:%Y-%m-%d %H:%M} UTC, {left}" if days > 0 else "HAS EXPIRED"
            names = ", ".join(names_of(one.certificate)) or "signs the others"
            lines.append(f"{self.certificate(name)}: {ends}; {names}")
        return lines

    def _root(self, life: timedelta) -> Certificate:
        certificate, key = self.certificate(ROOT), self.key(ROOT)
        old = Certificate.read(certificate, key) if certificate.exists() and key.exists() else None
        if old is not None and old.expires > datetime.now(UTC) + life:
            return old
        root = new_root(f"{self.domain} test root", max(ROOT_LIFE, 2 * life))
        root.write(certificate, key, also=b"" if old is None else old.pem)
        if old is not None:
            time.sleep(2 * CHECK_SECONDS)  # till services that run trust the new one
        return root
