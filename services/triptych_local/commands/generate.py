"""`triptych generate`: finds the services or loads the model, shows how far it is, writes the pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from triptych.client import AsyncClient
from triptych.errors import StartError
from triptych.file_kinds import kind_of_file
from triptych.generation_options import GenerationOptions
from triptych.serving.addresses import check_listen
from triptych.serving.channels import target
from triptych.serving.diagnosis import why_no_connection
from triptych.serving.health import serves
from triptych.tensors import message_to_array
from triptych.v1 import image_generation_pb2 as pb
from triptych_local.commands.client_tls import ClientTls
from triptych_local.commands.settings import GenerateSettings, Place
from triptych_local.commands.timings import timing_lines
from triptych_local.output import say, write_file
from triptych_local.progress import Display, display
from triptych_local.running.folders import CERTIFICATES, standing_coordinator, well_known_folder
from triptych_local.running.processes import connected

CONNECT_SECONDS = 5.0


def numbered(output: Path, count: int) -> list[Path]:
    """The file of each picture: out.png, or out-0.png, out-1.png, ..."""
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{index}") for index in range(count)]


async def generate(asked: GenerateSettings) -> None:
    """Makes the pictures that a command asks for. Raises StartError or TriptychError."""
    parameters = asked.request.parameters() | asked.place.model()
    if asked.save_latents:
        parameters["return_latents"] = True
    parameters.setdefault("output_format", {kind_of_file(asked.output): {}})
    files = numbered(asked.output, len(asked.prompts) * parameters.get("num_images_per_prompt", 1))
    latents_file = asked.save_latents
    if latents_file is not None and latents_file.suffix != ".npy":
        latents_file = latents_file.with_name(f"{latents_file.name}.npy")
    finished = await generate_files(asked.prompts, parameters, files, asked.place, latents_file)
    if asked.timings:
        for line in timing_lines(finished):
            say(line)


async def generate_files(
    prompts: Sequence[str],
    parameters: Mapping[str, Any],
    files: Sequence[Path],
    place: Place,
    latents_file: Path | None = None,
) -> pb.Finished:
    """Generates, and prints a line for each file on standard output: its name, its seed, the seconds so far.

    Previews go to files beside the pictures', latents, if they come and have a file, into it. Returns what
    the generation ended with.

    Raises StartError or TriptychError.
    """
    started, finished = time.monotonic(), pb.Finished()
    with display() as shown:
        async with (
            connected_client(place, shown) as client,
            aclosing(client.stream(prompts, **cast(GenerationOptions, parameters))) as events,
        ):
            shown.phase("encoding the prompt")
            latents: list[NDArray[np.float32]] = []
            async for event in events:
                _show(event, shown)
                if event.HasField("finished"):
                    finished = event.finished
                for file, preview in zip(files, event.step_completed.previews, strict=False):
                    await asyncio.to_thread(write_file, preview_file(file), preview)
                if event.HasField("image"):
                    picture = event.image
                    if picture.HasField("latents"):
                        latents.append(message_to_array(picture.latents, "latents"))
                    data = picture.png or picture.webp or picture.jpeg
                    await asyncio.to_thread(write_file, files[picture.index], data)
                    seconds = time.monotonic() - started
                    say(f"{files[picture.index]}  seed {picture.seed}  {seconds:.1f} s")
            if latents_file is not None:
                written = BytesIO()
                np.save(written, np.stack(latents), allow_pickle=False)
                await asyncio.to_thread(write_file, latents_file, written.getvalue())
    return finished


def preview_file(file: Path) -> Path:
    """Where the latest preview of a picture is: out-preview.png."""
    return file.with_name(f"{file.stem}-preview.png")


def _show(event: pb.GenerateResponse, shown: Display) -> None:
    match event.WhichOneof("event"):
        case "accepted":
            for warning in event.accepted.warnings:
                shown.note(f"warning: {warning}")
            shown.phase("denoising")
        case "queued":
            shown.phase(_in_queue(event.queued))
        case "waiting":
            shown.note(f"waiting for a {event.waiting.stage}: none answers; this goes on when one does")
        case "step_completed":
            step = event.step_completed
            shown.step(step.step, step.num_steps)
            if step.step == step.num_steps:
                shown.phase("decoding")
        case "finished":
            for warning in event.finished.warnings:
                shown.note(f"warning: {warning}")


def _in_queue(queued: pb.Queued) -> str:
    """How many requests are before this one, and for about how long."""
    ahead = queued.position - 1
    place = f"{ahead} request{'s' * (ahead > 1)} ahead" if ahead else "next"
    about = f", about {queued.wait_seconds:.0f} s" if queued.wait_seconds >= 1 else ""
    return f"in the queue: {place}{about}"


@asynccontextmanager
async def connected_client(place: Place, shown: Display) -> AsyncIterator[AsyncClient]:
    """A client of the services at an address, else of those of `triptych up`, else of this process.

    One process is ready in half the time that four take, which each import what computes.
    """
    address, tls = await _address(place)
    if address is not None:
        async with AsyncClient(address, **tls.of_client()) as client:
            yield client
        return
    from triptych_local.running.fused import fused_client

    if not place.fused:
        shown.note("Loading the model for this command alone; 'triptych up' in another terminal keeps it.")
    shown.phase("loading the model into this process")
    async with fused_client(place.choice) as client:
        yield client


async def _address(place: Place) -> tuple[str | None, ClientTls]:
    """The coordinator at --target, or that of `triptych up` if its model is wanted and it is there."""
    if place.target is not None:
        await check_answers(place.target, place.tls)
        return place.target, place.tls
    if place.fused or place.choice.model_fields_set:
        return None, place.tls
    return await standing_address(place.tls)


async def standing_address(given: ClientTls) -> tuple[str | None, ClientTls]:
    """The coordinator of `triptych up`, if it serves, and how it is called: with the key that is given."""
    standing = standing_coordinator(well_known_folder())
    if standing is not None:
        key = {"api_key_file": given.api_key_file}
        found = ClientTls.of_folder(well_known_folder() / CERTIFICATES)
        for tls in (given, found and found.model_copy(update=key)):
            if tls is not None and await serves(standing, tls.at(standing)):
                return standing, tls
    return None, given


async def check_answers(address: str, given: ClientTls) -> None:
    """Raises StartError when nobody listens at the address, it is none, or TLS keeps it from being called."""
    try:
        check_listen(address if address.startswith("unix:") else target(address))
        tls = given.at(address)
        await asyncio.wait_for(connected(address, tls), CONNECT_SECONDS)
    except ValueError as error:
        raise StartError(f"--target: {error}") from error
    except TimeoutError as error:
        why = await asyncio.to_thread(why_no_connection, address, tls)
        late = f"no coordinator answers at {address} within {CONNECT_SECONDS:g} s"
        raise StartError(why or late) from error
