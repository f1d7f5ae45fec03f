"""Certificates for tests: a root in a folder, and what it signs."""

from datetime import timedelta
from pathlib import Path

from triptych_local.certificates import Certificate, issue, new_root

DAY = timedelta(days=1)
HERE = ("localhost", "127.0.0.1")


class Issuer:
    """A root whose certificates are files of a folder: NAME.pem and NAME.key."""

    def __init__(self, folder: Path, name: str = "root") -> None:
        self.folder, self.name = folder, name
        self.root = new_root(name, DAY)
        self.roots = folder / f"{name}.pem"
        self.roots.write_bytes(self.root.pem)

    def new(self, *names: str, life: timedelta = DAY) -> Certificate:
        """A certificate of the root."""
        return issue(self.root, names[0], names, life)

    def write(self, name: str, *names: str, life: timedelta = DAY) -> tuple[Path, Path]:
        """Its files and those of its key."""
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self.new(*(names or HERE), life=life).write(*files)
        return files
