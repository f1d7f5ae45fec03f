"""What a client has of a generation: its pictures, and all that the server said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triptych.errors import internal
from triptych.file_kinds import kind_of_file
from triptych.tensors import message_to_array
from triptych.v1 import image_generation_pb2 as pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters

Progress = Callable[[pb2.StepCompleted], object]


@dataclass(frozen=True)
class Image:
    """A picture: a file that carries its parameters, and the seed that gives it alone.

    The file is in `png`, `webp` or `jpeg`, as output_format asked for. `latents`, float32 [channels, height,
    width] in latent pixels, come with the option return_latents.
    """

    index: int
    png: bytes
    seed: int
    prompt: str
    width: int
    height: int
    latents: NDArray[np.float32] | None = field(default=None, compare=False)
    webp: bytes = b""
    jpeg: bytes = b""

    def save(self, path: str | Path) -> None:
        """Writes the file. Raises ValueError when its name says that it is of another kind."""
        kind = kind_of_file(path)
        if kind is not None and not getattr(self, kind):
            raise ValueError(
                f"'{path}' is no name for this picture: ask for output_format={{'{kind}': {{}}}}"
            )
        Path(path).write_bytes(self.png or self.webp or self.jpeg)


@dataclass(frozen=True)
class Generation:
    """A request's pictures, the parameters that give them again, warnings, timings and fingerprints."""

    images: list[Image]
    parameters: GenerationParameters
    warnings: list[str]
    finished: pb2.Finished


class Folded:
    """A generation's events, gathered."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress = on_progress
        self._accepted = pb2.Accepted()
        self._images: list[Image] = []
        self._finished: pb2.Finished | None = None

    def add(self, event: pb2.GenerateResponse) -> None:
        """Takes the next event. Kinds of a newer server are left out."""
        match event.WhichOneof("event"):
            case "accepted":
                self._accepted = event.accepted
            case "step_completed" if self._on_progress is not None:
                self._on_progress(event.step_completed)
            case "image":
                self._images.append(_image(event.image))
            case "finished":
                self._finished = event.finished

    def generation(self) -> Generation:
        """The whole; a stream that ended without saying so is an error."""
        if self._finished is None:
            raise internal("the server ended the stream before it was finished")
        accepted = self._accepted
        warnings = [*accepted.warnings, *self._finished.warnings]
        return Generation(self._images, accepted.parameters, warnings, self._finished)


def _image(message: pb2.GeneratedImage) -> Image:
    latents = message_to_array(message.latents, "latents") if message.HasField("latents") else None
    return Image(
        message.index,
        message.png,
        message.seed,
        message.prompt,
        message.width,
        message.height,
        latents,
        message.webp,
        message.jpeg,
    )
