"""An ImageGeneration service without a model: each prompt is a script for one kind of answer.

Run as a program, it is a service like any other: `python tests/shared/scripted_coordinator.py --listen ...`.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from triptych import errors
from triptych.serving.server import Loaded, Service, run
from triptych.serving.settings import ServerSettings, read_settings
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1 import image_generation_pb2_grpc as pb2_grpc

NAME = "triptych.v1.ImageGenerationService"
STEPS = 3
SILENT_SECONDS = 33


class ScriptedCoordinator(pb2_grpc.ImageGenerationServiceServicer):
    """Answers by the first prompt; `cancelled` is set once a call was cancelled.

    `cuts`: after how many events a call fails with which error, of the next calls, one each. `turn`: what a
    request with the prompt "queue" waits for, at first in the third place.
    """

    def __init__(self) -> None:
        self.cancelled, self.turn = asyncio.Event(), asyncio.Event()
        self.requests: deque[pb2.GenerateRequest] = deque(maxlen=8)
        self.cuts: list[tuple[int, errors.TriptychError]] = []

    async def Generate(
        self, request: pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[pb2.GenerateResponse]:
        """The events, up to a cut."""
        self.requests.append(request)
        cut, error = self.cuts.pop(0) if self.cuts else (-1, None)
        async with aclosing(self._events(request)) as events:
            for number in itertools.count():
                if number == cut and error is not None:
                    raise error
                event = await anext(events, None)
                if event is None:
                    return
                yield event

    async def _events(self, request: pb2.GenerateRequest) -> AsyncGenerator[pb2.GenerateResponse, None]:
        """Three steps and a picture per prompt, or what the prompt says. Its own seeds are 7, 8, ..."""
        parameters = request.parameters
        if not parameters.prompts:
            raise errors.invalid_argument(("parameters.prompts", "is empty"), ("parameters.height", "is 0"))
        if parameters.prompts[0] == "fail":
            raise errors.invalid_argument(("parameters.prompts[0]", "is to fail"))
        try:
            if parameters.prompts[0] == "queue":
                yield pb2.GenerateResponse(queued=pb2.Queued(position=3, wait_seconds=12))
                await self.turn.wait()
                yield pb2.GenerateResponse(queued=pb2.Queued(position=1))
            accepted = pb2.Accepted(parameters=parameters, warnings=["cut"])
            accepted.parameters.seeds[:] = parameters.seeds or range(7, 7 + len(parameters.prompts))
            yield pb2.GenerateResponse(accepted=accepted)
            for step in range(1, STEPS + 1):
                yield pb2.GenerateResponse(step_completed=pb2.StepCompleted(step=step, num_steps=STEPS))
            if parameters.prompts[0] == "hang":
                await asyncio.sleep(60)
            if parameters.prompts[0] == "fail at the end":
                raise errors.unavailable("the VAE codec is away")
            for index, prompt in enumerate(parameters.prompts):
                picture = pb2.GeneratedImage(index=index, png=b"png", seed=index, prompt=prompt)
                yield pb2.GenerateResponse(image=picture)
            if parameters.prompts[0] != "end early":
                yield pb2.GenerateResponse(finished=pb2.Finished(rows=6))
        except (asyncio.CancelledError, GeneratorExit):  # gRPC does the one or the other
            self.cancelled.set()
            raise

    async def GenerateImages(
        self, request: pb2.GenerateImagesRequest, context: Any
    ) -> pb2.GenerateImagesResponse:
        """Raises what the prompt names, or answers after a third of a second."""
        match request.parameters.prompts[0]:
            case "crash":
                raise KeyError(f"words of the request: {request.parameters.prompts[1]}")
            case "fail":
                raise errors.invalid_argument(("parameters.prompts[0]", "is to fail"))
            case "busy":
                raise errors.resource_exhausted("64 requests wait", 1.5)
            case "missing":
                raise errors.missing_conditioning([bytes([n]) * 32 for n in range(200)])
            case "many violations":
                raise errors.invalid_argument(*[(f"prompts[{n}]", "ä" * 2000) for n in range(200)])
            case "long message":
                raise errors.not_found("€" * 100_000)
            case "silent":
                await asyncio.sleep(SILENT_SECONDS)
            case "large answer":
                return pb2.GenerateImagesResponse(warnings=["x" * 2_000_000])
        await asyncio.sleep(1 / 3)
        return pb2.GenerateImagesResponse(parameters=request.parameters)

    async def GetModel(
        self, request: pb2.ImageGenerationServiceGetModelRequest, context: Any
    ) -> pb2.ImageGenerationServiceGetModelResponse:
        """Describes no model."""
        return pb2.ImageGenerationServiceGetModelResponse(name="scripted")


def service(servicer: pb2_grpc.ImageGenerationServiceServicer) -> Service:
    return Service(NAME, partial(pb2_grpc.add_ImageGenerationServiceServicer_to_server, servicer))


async def load() -> Loaded:
    return Loaded([service(ScriptedCoordinator())], "no model")


if __name__ == "__main__":
    run("coordinator", read_settings(ServerSettings, "scripted_coordinator"), load)
