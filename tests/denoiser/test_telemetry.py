"""What a denoiser's metrics say of its rows, over a real socket."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from tests import telemetry
from tests.denoiser.serving import Denoiser, Prompt, random_latents, request, serving
from triptych.telemetry.instruments import CACHE, QUEUE, STAGE
from triptych_denoiser.predictor import Velocities
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserSettings


async def test_rows_and_tokens_of_passes_are_counted(denoiser: Denoiser) -> None:
    telemetry.metric_reader()
    prompt = Prompt.random(0)
    await denoiser.stub.PutConditioning(prompt.upload())
    rows, tokens = telemetry.total("triptych.batch.rows"), telemetry.value("triptych.batch.tokens")
    waited = telemetry.count("triptych.queue.duration", {QUEUE: "rows"})
    two = request(random_latents(1, samples=2), [0.5, 0.25], [[prompt, prompt]])
    await asyncio.gather(denoiser.stub.Predict(two), denoiser.stub.Predict(two))
    assert telemetry.total("triptych.batch.rows") == rows + 4
    assert telemetry.value("triptych.batch.tokens") - tokens == 4 * (16 + 5)  # its equal last tokens are one
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


async def test_a_call_that_has_its_pass_to_itself_tells_of_it(denoiser: Denoiser) -> None:
    exporter, prompt = telemetry.span_exporter(), Prompt.random(4)
    await denoiser.stub.PutConditioning(prompt.upload())
    two = request(random_latents(1, samples=2), [0.5, 0.5], [[prompt, prompt]])
    await denoiser.stub.Predict(two, metadata=[("traceparent", f"00-{0xD:032x}-{7:016x}-01")])
    (call,) = telemetry.spans(f"{0xD:032x}")
    told = dict(call.attributes or {})
    assert told["triptych.batch.rows"] == 2
    assert told["triptych.batch.tokens"] == 2 * (16 + 5)
    assert told["triptych.queue.seconds"] > 0
    assert told["triptych.compute.seconds"] > 0
    assert not [one for one in exporter.get_finished_spans() if links_to(one, call)]


@dataclass
class SharedPass:
    """A denoiser whose first pass waits until the calls after it have come, which then share the second.

    calls: of 1, 1 and 2 rows, each of a trace of its own.
    """

    traces: tuple[int, int, int]
    second: Callable[[], None] = lambda: None
    """What the second pass does before it computes."""

    async def run(self, denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """What the calls were answered."""
        begun, let_go, predict = threading.Event(), threading.Event(), denoiser.servicer._predictor.predict

        def held(rows: Sequence[Row]) -> Velocities:
            if begun.is_set():
                self.second()
            begun.set()
            assert let_go.wait(60)
            return predict(rows)

        monkeypatch.setattr(denoiser.servicer._predictor, "predict", held)
        prompt = Prompt.random(5)
        await denoiser.stub.PutConditioning(prompt.upload())

        def call(trace_id: int, samples: int) -> asyncio.Future[object]:
            asked = request(random_latents(1, samples), [0.5] * samples, [[prompt] * samples])
            metadata = [("traceparent", f"00-{trace_id:032x}-{7:016x}-01")]
            return asyncio.ensure_future(denoiser.stub.Predict(asked, metadata=metadata))

        calls = [call(self.traces[0], 1)]
        assert await asyncio.to_thread(begun.wait, 60)
        calls += [call(self.traces[1], 1), call(self.traces[2], 2)]
        async with asyncio.timeout(60):
            while len(denoiser.servicer._batcher._queue) < 3:
                await asyncio.sleep(0.01)
        let_go.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    def spans(self) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
        """Of the calls, and of the batches that link to one of them."""
        calls = [span for trace_id in self.traces for span in telemetry.spans(f"{trace_id:032x}")]
        finished = telemetry.span_exporter().get_finished_spans()
        return calls, [one for one in finished if any(links_to(one, call) for call in calls)]


@pytest.fixture
async def sharing(settings: DenoiserSettings) -> AsyncIterator[Denoiser]:
    """A denoiser whose rows always run together."""
    telemetry.span_exporter()
    async with serving(settings.model_copy(update={"determinism": "fast"})) as denoiser:
        yield denoiser


async def test_a_shared_pass_links_to_every_request_in_it_and_to_no_other(
    sharing: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedPass((0xE1, 0xE2, 0xE3))
    await shared.run(sharing, monkeypatch)
    (alone, second, third), (batch,) = shared.spans()
    assert batch.parent is None
    assert {link.context.span_id for link in batch.links} == {span_id(second), span_id(third)}
    rows = [(one.attributes or {})["triptych.batch.rows"] for one in (batch, alone, second, third)]
    assert rows == [3, 1, 3, 3]


async def test_a_pass_that_fails_says_so_in_its_span_without_the_errors_words(
    sharing: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise RuntimeError("a secret cat")

    shared = SharedPass((0xE4, 0xE5, 0xE6), failing)
    answers = await shared.run(sharing, monkeypatch)
    assert [isinstance(one, grpc.RpcError) for one in answers] == [False, True, True]
    (_, *calls), (batch,) = shared.spans()
    assert all(one.status.status_code is StatusCode.ERROR for one in (*calls, batch))
    assert "secret" not in "".join(one.to_json() for one in (*calls, batch))


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def links_to(span: ReadableSpan, other: ReadableSpan) -> bool:
    return span_id(other) in [link.context.span_id for link in span.links]
