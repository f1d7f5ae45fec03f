"""Prompts are encoded once, alone, off the event loop, and forgotten when others were used more lately."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from triptych.compute.thread import compute
from triptych_text_encoder.encoder import TextEncoder
from triptych_text_encoder.encoding import Encoding, Picture
from triptych_text_encoder.recipes import Recipe
from triptych_text_encoder.towers import Tower
from triptych_text_encoder.weighting import Span


class CountingRecipe:
    """Encodes a prompt as four zeros (20 bytes with the pooled number), once it is let."""

    tokens, joint_attention_dim, pooled_projection_dim, parameters = 1, 4, 1, 0
    encoders: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    towers: tuple[Tower, ...] = ()

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def encode(self, prompt: str, pictures: Sequence[Picture] = ()) -> Encoding:
        self.prompts.append(prompt)
        self.begun.set()
        assert self.go_on.wait(10)
        return Encoding(torch.zeros(1, 4), torch.zeros(1), "")

    def token_weights(self, prompt: str, spans: Sequence[Span]) -> list[float]:
        return [1.0]


@pytest.fixture
def recipe() -> CountingRecipe:
    return CountingRecipe()


async def test_a_repeated_prompt_costs_nothing(recipe: CountingRecipe) -> None:
    encoder = TextEncoder(recipe)

    first, again = await encoder.encode(""), await encoder.encode("")

    assert first is again
    assert recipe.prompts == [""]


async def test_prompts_are_found_in_their_own_scope_and_the_empty_one_in_all(recipe: CountingRecipe) -> None:
    encoder = TextEncoder(recipe)
    for scope in (b"one", b"two", b"one"):
        await encoder.encode("a cat", scope=scope)
        await encoder.encode("", scope=scope)
    assert recipe.prompts == ["a cat", "", "a cat"]


async def test_what_was_seen_beside_pictures_is_found_with_them_and_in_its_own_scope_alone(
    recipe: CountingRecipe,
) -> None:
    encoder = TextEncoder(recipe)
    one, other = (Picture(np.zeros((1, 1, 3), np.uint8), digest) for digest in (b"one", b"other"))
    for pictures in ((one, other), (other, one), (one,), (), (one, other)):
        await encoder.encode("", pictures=pictures)
    assert len(recipe.prompts) == 4
    await encoder.encode("", pictures=(one,), scope=b"another's")
    assert len(recipe.prompts) == 5


async def test_a_concurrent_duplicate_is_computed_once(recipe: CountingRecipe) -> None:
    encoder = TextEncoder(recipe)

    encodings = await asyncio.gather(*(encoder.encode("a cat") for _ in range(8)))

    assert all(encoding is encodings[0] for encoding in encodings)
    assert recipe.prompts == ["a cat"]


async def test_the_event_loop_runs_while_a_prompt_is_encoded(recipe: CountingRecipe) -> None:
    recipe.go_on.clear()
    encoding = asyncio.create_task(TextEncoder(recipe).encode("a cat"))

    await asyncio.to_thread(recipe.begun.wait, 10)
    assert not encoding.done()

    recipe.go_on.set()
    await encoding


async def test_a_cancelled_prompt_is_not_encoded(recipe: CountingRecipe) -> None:
    encoder = TextEncoder(recipe)
    recipe.go_on.clear()
    first = asyncio.create_task(encoder.encode("first"))
    await asyncio.to_thread(recipe.begun.wait, 10)
    cancelled, last = (asyncio.create_task(encoder.encode(prompt)) for prompt in ("cancelled", "last"))
    await asyncio.sleep(0)

    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    recipe.go_on.set()
    await asyncio.gather(first, last)

    assert recipe.prompts == ["first", "last"]


async def test_a_prompt_that_nobody_waits_for_ends_between_layers(recipe_without_t5: Recipe) -> None:
    first, second, *_ = recipe_without_t5.towers[0].model.text_model.encoder.layers
    begun, go_on, reached = threading.Event(), threading.Event(), list[str]()

    def pause(*_: object) -> None:
        begun.set()
        assert go_on.wait(10)

    hooks = [
        first.register_forward_hook(pause),
        second.register_forward_hook(lambda *_: reached.append("second")),
    ]
    encoder = TextEncoder(recipe_without_t5)
    task = asyncio.create_task(encoder.encode("a cat that nobody waits for"))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.wait([task])
    go_on.set()
    await compute(list)  # a turn after it
    assert not reached
    await encoder.encode("a cat that nobody waits for")
    assert reached
    for hook in hooks:
        hook.remove()


async def test_a_failed_prompt_fails_alone(recipe: CountingRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(recipe)
    with monkeypatch.context() as patched:
        patched.setattr(recipe.go_on, "wait", lambda _: False)
        with pytest.raises(AssertionError):
            await encoder.encode("a cat")

    assert (await encoder.encode("a cat")).truncated == ""


@pytest.mark.parametrize("which", ["recipe_without_t5", "recipe_with_t5"])
async def test_a_prompt_gives_the_same_bits_alone_and_in_company(
    which: str, request: pytest.FixtureRequest
) -> None:
    real: Recipe = request.getfixturevalue(which)
    prompts = ["", "a red cat", "a cat " * 200, "a"]
    alone = [real.encode(prompt) for prompt in prompts]

    encoder = TextEncoder(real)
    together = await asyncio.gather(*(encoder.encode(prompt) for prompt in prompts))

    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.sequence, other.sequence)
        assert torch.equal(one.pooled, other.pooled)
