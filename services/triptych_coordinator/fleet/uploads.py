"""What a replica was sent to keep, each thing once however many requests need it at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Set
from functools import partial
from typing import Any, TypeAlias

Upload: TypeAlias = asyncio.Task[None]

_MOST_REMEMBERED = 10_000


class Uploads:
    """The uploads to one replica by digest, and whose: those that run, and those that succeeded."""

    def __init__(self) -> None:
        self._uploads: dict[bytes, Upload] = {}

    def has(self, digests: Set[bytes]) -> bool:
        """Whether all of them were sent, or are being sent."""
        return digests <= self._uploads.keys()

    async def ensure(self, digest: bytes, send: Callable[[], Coroutine[Any, Any, None]]) -> Upload:
        """Sends it unless that was done, or waits for whoever is sending it; raises what `send` raises.

        An upload goes on when a request that waits for it is cancelled: others may wait for it too.
        """
        upload = self._uploads.get(digest)
        if upload is None:
            upload = self._uploads[digest] = asyncio.create_task(send())
            upload.add_done_callback(partial(self._ended, digest))
        await asyncio.shield(upload)
        return upload

    def forget(self, digest: bytes, upload: Upload) -> None:
        """Remembers no longer that this upload was kept; a later one of the same digest stays."""
        if self._uploads.get(digest) is upload:
            del self._uploads[digest]

    def _ended(self, digest: bytes, upload: Upload) -> None:
        if upload.cancelled() or upload.exception() is not None:
            self.forget(digest, upload)
        while len(self._uploads) > _MOST_REMEMBERED:
            del self._uploads[next(iter(self._uploads))]
