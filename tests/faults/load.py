"""Clients that ask for pictures one after the other and compare each with the same picture made in peace."""

import asyncio
import io
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from triptych.client import AsyncClient
from triptych.errors import TriptychError

PROMPTS = ("a zebra", "a fire truck", "a cactus above a rocket", "a penguin")
SEEDS = 3


@dataclass(frozen=True)
class Picture:
    """What every request asks for beside its prompt and seed; small ones make many requests."""

    steps: int = 6
    size: int = 128
    timeout: float = 120.0
    references: int = 0


@dataclass
class Outcome:
    """What became of the requests, and how many faults met some that ran."""

    answered: int = 0
    different: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    faults_in_flight: int = 0

    @property
    def requests(self) -> int:
        """All that have ended."""
        return len(self.seconds)

    def latency(self, percent: float) -> float:
        """Seconds within which so many of a hundred requests ended."""
        times = sorted(self.seconds)
        return times[min(len(times) - 1, int(len(times) * percent / 100))]

    @property
    def added_delay(self) -> float:
        """How much longer than the median the longest request took, in seconds."""
        return self.latency(100) - self.latency(50)

    def described(self) -> str:
        """In a few lines."""
        hits = ", ".join(f"{count} {what}" for what, count in sorted(self.faults.items()))
        lines = [
            f"{self.answered} pictures the same, {self.different} different, {self.failed.total()} failed;"
            f" p50 {self.latency(50):.2f} s, p99 {self.latency(99):.2f} s, longest {self.latency(100):.2f} s",
            f"{self.faults.total()} faults, {self.faults_in_flight} of them with requests in flight: {hits}",
            *(f"  {count} x {message}" for message, count in self.failed.most_common(10)),
        ]
        return "\n".join(lines)


class Load:
    """So many clients."""

    def __init__(self, address: str, clients: int, picture: Picture, outcome: Outcome) -> None:
        self._address, self._clients, self._picture, self._outcome = address, clients, picture, outcome
        self._expected: dict[tuple[str, int], bytes] = {}
        self._stopping = False
        self.running = 0
        """Requests that have no answer yet."""

    async def learn(self, address: str) -> None:
        """Makes every picture in peace, at a coordinator that nothing happens to."""
        async with AsyncClient(address) as client:
            for key in _keys():
                self._expected[key] = await self._made(client, key)

    async def run(self) -> None:
        """Until it is stopped."""
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    def stop(self) -> None:
        """Ends the clients with their requests."""
        self._stopping = True

    async def _client(self, number: int) -> None:
        keys = _keys()
        random.Random(number).shuffle(keys)
        async with AsyncClient(self._address) as client:
            while not self._stopping:
                key = keys[number % len(keys)]
                number += 1
                await self._ask(client, key)

    async def _ask(self, client: AsyncClient, key: tuple[str, int]) -> None:
        began = time.monotonic()
        self.running += 1
        try:
            same = await self._made(client, key) == self._expected[key]
        except TriptychError as error:
            self._outcome.failed[f"{error.code.name}: {error.message[:160]}"] += 1
            await asyncio.sleep(0.05)
        else:
            self._outcome.answered += same
            self._outcome.different += not same
        finally:
            self.running -= 1
            self._outcome.seconds.append(time.monotonic() - began)

    async def _made(self, client: AsyncClient, key: tuple[str, int]) -> bytes:
        (prompt, seed), asked = key, self._picture
        generation = await client.generate(
            prompt,
            seed=seed,
            num_inference_steps=asked.steps,
            height=asked.size,
            width=asked.size,
            timeout=asked.timeout,
            references=[_file(seed + number) for number in range(asked.references)],
        )
        return generation.images[0].png


def _file(seed: int) -> bytes:
    """A PNG of coloured noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


def _keys() -> list[tuple[str, int]]:
    return [(prompt, seed) for prompt in PROMPTS for seed in range(SEEDS)]
