"""A cache that is bounded by the bytes of what it holds, keys included."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from triptych.telemetry import instruments
from triptych.telemetry.instruments import CACHE, HIT


class Sized(Protocol):
    """What knows its size."""

    @property
    def nbytes(self) -> int:
        """Bytes."""
        ...


Key = TypeVar("Key")
Value = TypeVar("Value", bound=Sized)


class Cache(Generic[Key, Value]):
    """Values by key; beyond `max_bytes`, what was not used for longest is forgotten.

    A caller keeps what it got, forgotten or not. Safe to use from several threads.
    """

    def __init__(self, max_bytes: int, *, keeps_newest: bool = True, name: str = "") -> None:
        """With `keeps_newest`, the newest entry stays whatever its size; else one over the limit does not.

        With a name there are metrics of it.
        """
        self._max_bytes = max_bytes
        self._fewest = 1 if keeps_newest else 0
        self._bytes = 0
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._name = name
        if name:
            instruments.cache_size.watch(self, Cache.held_bytes, {CACHE: name})

    def held_bytes(self) -> int:
        """What it holds."""
        return self._bytes

    def get(self, key: Key) -> Value | None:
        """The value, now the last used; None if it is not here."""
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
        if self._name:
            instruments.cache_lookups.add(1, {CACHE: self._name, HIT: value is not None})
        return value

    def put(self, key: Key, value: Value) -> None:
        """Remembers the value; it replaces what has the same key."""
        with self._lock:
            replaced = self._entries.pop(key, None)
            if replaced is not None:
                self._bytes -= entry_bytes(key, replaced)
            self._entries[key] = value
            self._bytes += entry_bytes(key, value)
            while self._bytes > self._max_bytes and len(self._entries) > self._fewest:
                self._bytes -= entry_bytes(*self._entries.popitem(last=False))


def entry_bytes(key: object, value: Sized) -> int:
    """What a cache counts for an entry."""
    return _key_bytes(key) + value.nbytes


def _key_bytes(key: object) -> int:
    """What a key takes: a text, bytes, a number, or a tuple of such. Other objects are their owners'."""
    parts = sum(map(_key_bytes, key)) if isinstance(key, tuple) else 0
    return sys.getsizeof(key) + parts
