"""AUTOMATIC1111's API, /sdapi/v1, as its clients use it: one model, no options that last."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import aclosing
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triptych.client import AsyncClient
from triptych.errors import TriptychError
from triptych.v1 import image_generation_pb2 as pb
from triptych_gateway.automatic1111.jobs import Job, Jobs
from triptych_gateway.automatic1111.sdapi_request import (
    SAMPLERS,
    SCHEDULERS,
    SdRequest,
    bytes_of,
    read_sd_request,
)
from triptych_gateway.bodies import read_fields
from triptych_gateway.connected import while_connected
from triptych_gateway.credentials import Credentials
from triptych_gateway.errors import HttpError, http_error, json_response
from triptych_gateway.pictures import drawn_mask, enlarged, in_thread, of_file, texts_of
from triptych_gateway.settings import GatewaySettings


class SdApi:
    """The handlers."""

    def __init__(self, client: AsyncClient, settings: GatewaySettings) -> None:
        self._client = client
        self._settings = settings
        self._credentials = Credentials(settings)
        self._jobs = Jobs()
        self._has_previews = True

    def routes(self) -> list[Route]:
        """Which path is whose."""
        get = {
            "progress": self.progress,
            "options": self.options,
            "samplers": self.samplers,
            "schedulers": self.schedulers,
            "sd-models": self.models,
            "loras": self.loras,
        }
        post = {
            "txt2img": self.txt2img,
            "img2img": self.img2img,
            "interrupt": self.interrupt,
            "options": self.set_options,
            "png-info": self.png_info,
        }
        return [
            *(Route(f"/sdapi/v1/{name}", handler, methods=["GET"]) for name, handler in get.items()),
            *(Route(f"/sdapi/v1/{name}", handler, methods=["POST"]) for name, handler in post.items()),
        ]

    async def txt2img(self, request: Request) -> Response:
        """Pictures of a prompt."""
        return await self._answer(request, has_image=False)

    async def img2img(self, request: Request) -> Response:
        """Pictures from a picture; white of a mask is made anew."""
        return await self._answer(request, has_image=True)

    async def progress(self, request: Request) -> Response:
        """How far the caller's oldest request is."""
        job = self._jobs.oldest(_caller(request))
        state = {
            "skipped": False,
            "interrupted": job is not None and job.interrupted,
            "job": "txt2img" if job else "",
            "job_count": 1 if job else 0,
            "job_no": 0,
            "sampling_step": job.step if job else 0,
            "sampling_steps": job.num_steps if job else 0,
        }
        preview = base64.b64encode(job.preview).decode() if job and job.preview else None
        return json_response(
            {
                "progress": job.progress() if job else 0.0,
                "eta_relative": job.seconds_left() if job else 0.0,
                "state": state,
                "current_image": preview,
                "textinfo": job.place() if job else None,
            }
        )

    async def interrupt(self, request: Request) -> Response:
        """Ends the caller's requests, whose answer is a 409."""
        self._jobs.interrupt(_caller(request))
        return json_response({})

    async def options(self, request: Request) -> Response:
        """The one that is known here."""
        served = await self._model(request)
        return json_response({"sd_model_checkpoint": served.name, "samples_format": "png"})

    async def set_options(self, request: Request) -> Response:
        """Chooses the model that is served, which changes nothing; another one is a 404."""
        fields = await read_fields(request, self._settings.body_seconds)
        name, served = fields.get("sd_model_checkpoint"), await self._model(request)
        if name and name != served.name and not self._is_alias(name):
            message = f"there is no model '{str(name)[:100]}'; this server has '{served.name}'"
            raise HttpError(404, message, "model_not_found", "sd_model_checkpoint")
        return json_response(None)

    async def samplers(self, request: Request) -> Response:
        """Solvers by their usual names."""
        del request
        named = ((name, list(aliases)) for name, (_, aliases) in SAMPLERS.items())
        return json_response([{"name": name, "aliases": aliases, "options": {}} for name, aliases in named])

    async def schedulers(self, request: Request) -> Response:
        """Sigma schedules by their usual names."""
        del request
        plain = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        return json_response(
            [{"name": name, "label": label, **plain} for label, (name, _) in SCHEDULERS.items()]
        )

    async def models(self, request: Request) -> Response:
        """The one that is served."""
        name = (await self._model(request)).name
        unknown = {"hash": None, "sha256": None, "filename": name, "config": None}
        return json_response([{"title": name, "model_name": name, **unknown}])

    async def loras(self, request: Request) -> Response:
        """Those that a prompt may name as <lora:name:weight>."""
        names = (await self._model(request)).loras
        return json_response([{"name": name, "alias": name, "path": "", "metadata": {}} for name in names])

    async def png_info(self, request: Request) -> Response:
        """What a picture's file says of how it was made."""
        fields = await read_fields(request, self._settings.body_seconds)
        texts = await of_file("image", texts_of, bytes_of(fields.get("image"), "image"))
        return json_response({"info": texts.get("parameters", ""), "items": texts, "parameters": {}})

    async def _model(self, request: Request) -> pb.ImageGenerationServiceGetModelResponse:
        return await self._client.model(metadata=self._credentials.of(request))

    def _is_alias(self, name: Any) -> bool:
        return any(fnmatchcase(str(name), alias) for alias in self._settings.model_alias)

    async def _answer(self, request: Request, has_image: bool) -> Response:
        fields = await read_fields(request, self._settings.body_seconds)
        asked = await asyncio.to_thread(read_sd_request, fields, has_image)  # a long one takes a while
        if self._is_alias(asked.parameters.model):
            asked.parameters.ClearField("model")
        if asked.mask is not None:
            read = partial(drawn_mask, inverted=asked.inverted, blur=asked.blur)
            asked.parameters.mask = await of_file("mask", read, asked.mask)
        try:
            accepted, images = await while_connected(request, self._made(request, asked))
        except TriptychError as error:
            refused = http_error(error)
            refused.param = asked.said.get((refused.param or "").partition("[")[0], refused.param)
            raise refused from error
        files = [image.png for image in images]
        echoed = {name: value for name, value in fields.items() if not _is_picture(name, value)}
        return json_response(
            {
                "images": [base64.b64encode(file).decode() for file in files],
                "parameters": echoed,
                "info": json.dumps(await in_thread(_info, asked, accepted, images)),
            }
        )

    async def _made(self, request: Request, asked: SdRequest) -> tuple[pb.Accepted, list[pb.GeneratedImage]]:
        """The pictures, with previews for `progress` where the model has some."""
        task = asyncio.current_task()
        assert task is not None
        with self._jobs.running(_caller(request), task) as job:
            try:
                return await self._as_far_as_possible(request, asked, job)
            except asyncio.CancelledError:
                if not job.interrupted or task.uncancel():
                    raise
                raise HttpError(409, "the request was interrupted", "interrupted") from None

    async def _as_far_as_possible(
        self, request: Request, asked: SdRequest, job: Job
    ) -> tuple[pb.Accepted, list[pb.GeneratedImage]]:
        """Without what not every model has: colours of latents for previews, and weights in prompts."""
        asked.parameters.preview_every = 1 if self._has_previews else 0
        while True:
            try:
                return await self._collected(request, asked, job)
            except TriptychError as error:
                lacking = http_error(error).param
                if lacking == "preview_every" and asked.parameters.preview_every:
                    self._has_previews = False
                    asked.parameters.ClearField("preview_every")
                elif lacking == "prompt_weighting" and asked.parameters.prompt_weighting:
                    asked.warnings.append("the model's text encoders take no weights: brackets are text")
                    asked.parameters.ClearField("prompt_weighting")
                else:
                    raise

    async def _collected(
        self, request: Request, asked: SdRequest, job: Job
    ) -> tuple[pb.Accepted, list[pb.GeneratedImage]]:
        accepted, images = pb.Accepted(), list[pb.GeneratedImage]()
        sent = pb.GenerateRequest(parameters=asked.parameters)
        seconds, metadata = self._settings.request_seconds, self._credentials.of(request)
        async with aclosing(self._client.events(sent, timeout=seconds, metadata=metadata)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "queued":
                        queued = event.queued
                        job.position, job.wait_seconds = queued.position, queued.wait_seconds
                    case "accepted":
                        accepted = event.accepted
                        job.begin()
                        asked.warnings += accepted.warnings
                    case "step_completed":
                        step = event.step_completed
                        job.step, job.num_steps = step.step, step.num_steps
                        if step.previews:
                            size = accepted.parameters.width, accepted.parameters.height
                            job.preview = await in_thread(enlarged, step.previews[0], *size, "png")
                    case "image":
                        images.append(event.image)
                    case "finished":
                        asked.warnings += event.finished.warnings
        return accepted, images


def _info(asked: SdRequest, accepted: pb.Accepted, images: list[pb.GeneratedImage]) -> dict[str, Any]:
    """What that API says of the pictures, as far as clients read it."""
    parameters = accepted.parameters
    solver = parameters.solver.WhichOneof("kind")
    negative = list(parameters.negative_prompts) or [""]
    return {
        "prompt": parameters.prompts[0],
        "all_prompts": [image.prompt for image in images],
        "negative_prompt": negative[0],
        "all_negative_prompts": negative * len(images),
        "seed": images[0].seed if images else -1,
        "all_seeds": [image.seed for image in images],
        "width": parameters.width,
        "height": parameters.height,
        "sampler_name": next((name for name, (proto, _) in SAMPLERS.items() if proto == solver), solver),
        "cfg_scale": parameters.guidance_scale,
        "steps": parameters.num_inference_steps,
        "batch_size": len(images),
        "denoising_strength": parameters.strength if asked.parameters.HasField("image") else None,
        "sd_model_name": parameters.model,
        "index_of_first_image": 0,
        "infotexts": [texts_of(image.png).get("parameters", "") for image in images],
        "warnings": asked.warnings,
    }


def _is_picture(name: str, value: Any) -> bool:
    """Whether a field has pictures, or files of a form, which are no JSON."""
    values = value if isinstance(value, list) else [value]
    return name in ("init_images", "mask") or any(isinstance(each, bytes) for each in values)


def _caller(request: Request) -> str:
    """Whose jobs are seen together."""
    return request.headers.get("authorization", "")
