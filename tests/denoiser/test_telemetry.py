"""What a denoiser's metrics say of its rows, over a real socket."""

import asyncio

from tests import telemetry
from tests.denoiser.serving import Denoiser, Prompt, random_latents, request
from triptych.telemetry.instruments import CACHE, QUEUE, STAGE


async def test_rows_and_tokens_of_passes_are_counted(denoiser: Denoiser) -> None:
    telemetry.metric_reader()
    prompt = Prompt.random(0)
    await denoiser.stub.PutConditioning(prompt.upload())
    rows, tokens = telemetry.total("triptych.batch.rows"), telemetry.total("triptych.batch.tokens")
    waited = telemetry.count("triptych.queue.duration", {QUEUE: "rows"})
    two = request(random_latents(1, samples=2), [0.5, 0.25], [[prompt, prompt]])
    await asyncio.gather(denoiser.stub.Predict(two), denoiser.stub.Predict(two))
    assert telemetry.total("triptych.batch.rows") == rows + 4
    assert telemetry.total("triptych.batch.tokens") - tokens == 4 * (16 + 5)  # its equal last tokens are one
    assert telemetry.count("triptych.queue.duration", {QUEUE: "rows"}) == waited + 2


async def test_a_denoiser_says_what_it_serves_and_what_waits(denoiser: Denoiser) -> None:
    telemetry.metric_reader()
    served = [point.attributes for point in telemetry.points("triptych.model.info", {STAGE: "denoiser"})]
    assert denoiser.servicer._model.fingerprint in [one["triptych.model.fingerprint"] for one in served]
    assert telemetry.value("triptych.queue.length", {QUEUE: "rows"}) == 0
    prompt = Prompt.random(3)
    before = telemetry.value("triptych.cache.size", {CACHE: "conditioning"})
    await denoiser.stub.PutConditioning(prompt.upload())
    assert telemetry.value("triptych.cache.size", {CACHE: "conditioning"}) > before
