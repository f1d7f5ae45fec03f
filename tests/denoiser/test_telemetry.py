"""What a denoiser's metrics say of its rows, over a real socket."""

import asyncio
import threading
from collections.abc import Sequence

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from tests import telemetry
from tests.denoiser.serving import Denoiser, Prompt, random_latents, request, serving
from tests.serving import refused
from triptych.telemetry.instruments import CACHE, QUEUE, STAGE
from triptych_denoiser.predictor import Velocities
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserSettings


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


async def test_a_shared_pass_links_to_every_request_in_it_and_to_no_other(
    settings: DenoiserSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, prompt = telemetry.span_exporter(), Prompt.random(5)
    begun, let_go = threading.Event(), threading.Event()
    async with serving(settings.model_copy(update={"determinism": "fast"})) as denoiser:
        batcher, predict = denoiser.servicer._batcher, denoiser.servicer._predictor.predict

        def held(rows: Sequence[Row]) -> Velocities:
            begun.set()
            assert let_go.wait(60)
            return predict(rows)

        monkeypatch.setattr(denoiser.servicer._predictor, "predict", held)
        await denoiser.stub.PutConditioning(prompt.upload())

        def call(number: int, samples: int) -> asyncio.Future[object]:
            asked = request(random_latents(number, samples), [0.5] * samples, [[prompt] * samples])
            metadata = [("traceparent", f"00-{number:032x}-{7:016x}-01")]
            return asyncio.ensure_future(denoiser.stub.Predict(asked, metadata=metadata))

        calls = [call(0xE1, 1)]
        assert await asyncio.to_thread(begun.wait, 60)
        calls += [call(0xE2, 1), call(0xE3, 2)]
        async with asyncio.timeout(60):
            while len(batcher._queue) < 3:
                await asyncio.sleep(0.01)
        let_go.set()
        await asyncio.gather(*calls)
    alone, second, third = (
        next(one for one in telemetry.spans(f"{number:032x}") if one.name.endswith("/Predict"))
        for number in (0xE1, 0xE2, 0xE3)
    )
    mine = {span_id(one) for one in (alone, second, third)}
    passes = [
        (linked, one.attributes["triptych.batch.rows"])
        for one in exporter.get_finished_spans()
        if one.name == "batch" and mine & (linked := {link.context.span_id for link in one.links})
    ]
    assert passes == [({span_id(alone)}, 1), ({span_id(second), span_id(third)}, 3)]
    assert second.attributes["triptych.batch.rows"] == third.attributes["triptych.batch.rows"] == 3


async def test_a_pass_that_fails_says_so_in_its_span_without_the_errors_words(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, prompt = telemetry.span_exporter(), Prompt.random(6)

    def failing(rows: Sequence[Row]) -> Velocities:
        raise RuntimeError("a secret cat")

    monkeypatch.setattr(denoiser.servicer._predictor, "predict", failing)
    await denoiser.stub.PutConditioning(prompt.upload())
    asked = request(random_latents(1), [0.5], [[prompt]])
    metadata = [("traceparent", f"00-{0xE4:032x}-{7:016x}-01")]
    error = await refused(denoiser.stub.Predict(asked, metadata=metadata))
    assert error.code is grpc.StatusCode.INTERNAL
    (call,) = [one for one in telemetry.spans(f"{0xE4:032x}") if one.name.endswith("/Predict")]
    spans = [call, *(one for one in exporter.get_finished_spans() if links_to(one, call))]
    assert [one.name for one in spans] == [call.name, "batch"]
    assert all(one.status.status_code is StatusCode.ERROR for one in spans)
    assert "secret" not in "".join(one.to_json() for one in spans)


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def links_to(span: ReadableSpan, other: ReadableSpan) -> bool:
    return span_id(other) in [link.context.span_id for link in span.links]
