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


async def test_a_batch_links_to_the_calls_that_share_it(denoiser: Denoiser) -> None:
    exporter = telemetry.span_exporter()
    prompt = Prompt.random(4)
    await denoiser.stub.PutConditioning(prompt.upload())
    one = request(random_latents(1), [0.5], [[prompt]])
    await denoiser.stub.Predict(one, metadata=[("traceparent", f"00-{0xD:032x}-{7:016x}-01")])
    (call,) = [found for found in telemetry.spans(f"{0xD:032x}") if found.name.endswith("/Predict")]
    batches = [found for found in exporter.get_finished_spans() if found.name == "batch"]
    (batch,) = [found for found in batches if call.context in [link.context for link in found.links]]
    assert batch.parent is None
    assert batch.attributes["triptych.batch.rows"] == call.attributes["triptych.batch.rows"] == 1
    assert call.attributes["triptych.compute.seconds"] > 0
