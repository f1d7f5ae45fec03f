"""Pictures that can be fetched by their address for a while."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from triptych.caches import Cache


@dataclass(frozen=True)
class Kept:
    """A file. `expires_at` is on the monotonic clock."""

    data: bytes
    media_type: str
    expires_at: float

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return len(self.data)


class KeptPictures:
    """Files by names that nobody can guess, for so many seconds and in so many bytes."""

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.max_bytes = max_bytes
        self._seconds = seconds
        self._cache = Cache[str, Kept](max_bytes, keeps_newest=False)

    def keep(self, data: bytes, media_type: str) -> str:
        """The name under which it can be had."""
        name = secrets.token_urlsafe(24)
        self._cache.put(name, Kept(data, media_type, time.monotonic() + self._seconds))
        return name

    def get(self, name: str) -> Kept | None:
        """The file; None if it is not here, or no longer."""
        kept = self._cache.get(name)
        return kept if kept is not None and time.monotonic() < kept.expires_at else None
