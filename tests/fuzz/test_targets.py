"""Readers of what strangers send, with bytes at random: in short; the long run is by hand, see guided.py."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.messages import mutated_bytes
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_readers_take_what_they_are_made_for(name: str) -> None:
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
@settings(max_examples=25)
def test_any_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seed, chance = data.draw(st.sampled_from(target.seeds())), data.draw(st.randoms(use_true_random=False))
    TARGETS[name].run(data.draw(st.sampled_from([seed[: chance.randrange(len(seed))], chance.randbytes(99)])))
    for _ in range(10):
        target.run(mutated_bytes(seed, random.Random(chance.random())))
