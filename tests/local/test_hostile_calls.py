"""The command that sends calls at random, in short; the long run is by hand, see tests/fuzz/calls.py."""

from tests.fuzz.calls import measure
from tests.local.conftest import Up


async def test_calls_at_random_are_refused_or_served(up: Up) -> None:
    outcome = await measure(up, calls=400, without=["shared memory"])
    assert sum(codes.total() for codes in outcome.codes.values()) == 400
    assert outcome.codes["denoiser"]["INVALID_ARGUMENT"] > 10
    assert not outcome.failed, outcome.described()
