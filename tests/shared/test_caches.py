"""A cache keeps what was used last, as far as its bytes go."""

import sys
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from triptych.caches import Cache

Bytes = NDArray[np.uint8]
KEY = sys.getsizeof("a")


def kept(cache: Cache[str, Bytes], keys: str) -> str:
    return "".join(key for key in keys if cache.get(key) is not None)


@pytest.mark.parametrize("keeps_newest", [False, True])
def test_the_longest_unused_is_forgotten_and_who_holds_it_keeps_it(keeps_newest: bool) -> None:
    cache: Cache[str, Bytes] = Cache(3 * (KEY + 10) + 5, keeps_newest=keeps_newest)
    for key in "abc":
        cache.put(key, np.ones(10, np.uint8))
    held = cache.get("a")
    cache.put("d", np.ones(10, np.uint8))

    assert kept(cache, "bcda") == "cda"
    assert cache.get("a") is held
    cache.put("e", np.ones(2 * KEY + 35, np.uint8))
    assert kept(cache, "abcde") == "e"
    assert held is not None
    assert held.sum() == 10


def test_putting_again_replaces_and_does_not_count_twice() -> None:
    cache: Cache[str, Bytes] = Cache(2 * (KEY + 10))
    for key, size in ("a", 10), ("b", 9), ("b", 8), ("b", 10):
        cache.put(key, np.ones(size, np.uint8))

    assert kept(cache, "ab") == "ab"
    found = cache.get("b")
    assert found is not None
    assert found.nbytes == 10


@pytest.mark.parametrize("keeps_newest", [False, True])
def test_the_newest_stays_over_the_limit_where_the_cache_keeps_it(keeps_newest: bool) -> None:
    cache: Cache[str, Bytes] = Cache(KEY + 19, keeps_newest=keeps_newest)
    cache.put("a", np.ones(20, np.uint8))

    assert (cache.get("a") is not None) is keeps_newest


def test_keys_are_counted_with_all_that_they_hold() -> None:
    cache: Cache[tuple[str, tuple[tuple[int, float], ...]], Bytes] = Cache(1 << 20, keeps_newest=False)
    tracemalloc.start()
    for number in range(1000):
        spans = tuple((1000 + k, 0.5 + k) for k in range(100))
        cache.put((f"{number}" + "ä" * 1000, spans), np.ones(1, np.uint8))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.5 * (1 << 20)
