"""A server that is called as a diffusers pipeline is, so that a script changes one line."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from triptych.errors import invalid_argument
from triptych.generation import Generation
from triptych.generation_options import check_names
from triptych.tensors import array_to_message
from triptych.v1 import editing_pb2
from triptych.v1 import image_generation_pb2 as pb2

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

    from triptych.client import Client

    Images: TypeAlias = list[PIL.Image.Image] | NDArray[np.float32]

log = logging.getLogger(__name__)

Callback: TypeAlias = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]

_UNKNOWN_TO_SERVER: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        ),
        "the server encodes prompts itself: give prompt and negative_prompt",
    ),
    **dict.fromkeys(
        (
            "ip_adapter_image",
            "ip_adapter_image_embeds",
            "negative_ip_adapter_image",
            "negative_ip_adapter_image_embeds",
        ),
        "the server has no image prompts",
    ),
    "mask": "give mask_image",
    "sigmas": "give sigma_schedule, whose explicit sigmas are used as they are",
    "timesteps": "give sigma_schedule, whose explicit sigmas are used as they are",
    "mu": "the shift is the checkpoint's, or that of sigma_schedule",
    "clip_skip": "the server takes the layer that the checkpoint was trained with",
    "max_sequence_length": "the server's text encoder has its own: leave it out",
    "joint_attention_kwargs": "give loras, as {'name': weight}",
    "cross_attention_kwargs": "give loras, as {'name': weight}",
    "masked_image_latents": "the server makes them: give image and mask_image",
    "padding_mask_crop": "cut the picture, and lay what comes back over it",
    **dict.fromkeys(
        (
            "skip_guidance_layers",
            "skip_layer_guidance_scale",
            "skip_layer_guidance_stop",
            "skip_layer_guidance_start",
        ),
        "give skip_layer_guidance, a message with layers, scale and interval",
    ),
}
"""Arguments of diffusers' pipelines that no server can honour as they are, and what to do instead."""


@dataclass(frozen=True)
class PipelineOutput:
    """What a pipeline returns: `images`, and with them all that the server said of them.

    `generation.images[0].save(...)` writes the file as it came, with its record of how it was made.
    """

    images: Images
    generation: Generation


class Pipeline:
    """A coordinator at an address, or a Client's, called as diffusers' text-to-image pipelines are.

    pipe = Pipeline("127.0.0.1:50050")
    pipe("a zebra", num_inference_steps=28, generator=torch.Generator().manual_seed(7)).images[0]

    `connection` is what Client takes. It needs Pillow: pip install 'triptych[pipeline]'.
    """

    __slots__ = ("_client", "_owned")  # what a script sets of diffusers' pipelines is an error, not nothing

    def __init__(self, target: str | Client, **connection: Any) -> None:
        from triptych.client import Client  # which has this class too

        if isinstance(target, Client) and connection:
            raise TypeError(
                f"a Client has been told how to connect: {', '.join(connection)} must be left out"
            )
        self._owned = not isinstance(target, Client)
        self._client = target if isinstance(target, Client) else Client(target, **connection)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        prompt_2: str | Sequence[str] | None = None,
        prompt_3: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        negative_prompt_3: str | Sequence[str] | None = None,
        image: PIL.Image.Image | bytes | None = None,
        mask_image: PIL.Image.Image | bytes | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: NDArray[np.float32] | torch.Tensor | editing_pb2.InitialLatents | None = None,
        output_type: Literal["pil", "np"] | None = None,
        return_dict: bool | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
        **options: Any,
    ) -> PipelineOutput | tuple[Images]:
        """Generates pictures: `.images`, PIL images.

        With output_type "np" they are float32 [n, height, width, 3], 0 to 1.

        The other options are those of Client.generate: num_inference_steps, guidance_scale, true_cfg_scale,
        height, width, num_images_per_prompt, strength, seed, loras and so on; None is not given. What is left
        out is the served model's default, which diffusers may have another one for.

        A generator says the seed and must be of the CPU and unused since it was seeded; it counts as used
        then. One per picture; or `seed`, with which picture k has seed + k. Pictures and masks are read as
        diffusers reads them, unless read_as_diffusers is False. latents, [1 or n, channels, height, width],
        are the noise to start from.

        callback_on_step_end(pipeline, step, timestep, {}) is called after every step, step from 0, timestep
        being 1000 times the noise level that was reached (diffusers says the one before the step). An
        exception in it cancels the work.

        Raises TriptychError for what the server refuses, and for what it cannot be asked.
        """
        for name, why in _UNKNOWN_TO_SERVER.items():
            if options.pop(name, None) is not None:
                raise invalid_argument((name, f"cannot be honoured: {why}"))
        check_names(options)
        if prompt is None:
            raise invalid_argument(("prompt", "must be given"))
        _check_same("prompt", prompt, prompt_2=prompt_2, prompt_3=prompt_3)
        second = {"negative_prompt_2": negative_prompt_2, "negative_prompt_3": negative_prompt_3}
        _check_same("negative_prompt", negative_prompt, **second)
        if output_type not in (None, "pil", "np"):
            raise invalid_argument(("output_type", f"must be 'pil' or 'np', not {output_type!r}"))
        if callback_on_step_end_tensor_inputs:
            raise invalid_argument(
                ("callback_on_step_end_tensor_inputs", "must be []: tensors stay in the server")
            )
        if image is not None:
            options["image"] = _file(image, "image")
            if options.get("read_as_diffusers") is None:
                options["read_as_diffusers"] = True
        if mask_image is not None:
            options["mask"] = _file(mask_image, "mask_image")
        if latents is not None:
            options["latents"] = _initial(latents)
        if generator is not None:
            if options.get("seed") is not None or options.get("seeds") is not None:
                raise invalid_argument(("generator", "give either generator or seed"))
            count = (1 if isinstance(prompt, str) else len(prompt)) * (
                options.get("num_images_per_prompt") or 1
            )
            options["seeds"] = _seeds(generator, count)
        told = None if callback_on_step_end is None else _told(self, callback_on_step_end)
        generation = self._client.generate(
            prompt, negative_prompt=negative_prompt, on_progress=told, **options
        )
        for warning in generation.warnings:
            log.warning("%s", warning)
        images = _opened(generation, output_type == "np")
        return PipelineOutput(images, generation) if return_dict is not False else (images,)

    def close(self) -> None:
        """Closes the connection, unless it is a Client's that was given."""
        if self._owned:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_same(name: str, text: object, **others: object) -> None:
    """Every text encoder is told the same."""
    for other, said in others.items():
        if said is not None and said != text:
            raise invalid_argument((other, f"must be {name} or left out: the server encodes one text"))


def _seeds(generator: torch.Generator | Sequence[torch.Generator], count: int) -> list[int]:
    """The seeds that generators stand for, which are used up."""
    generators = list(generator) if isinstance(generator, Sequence) else [generator]
    if len(generators) != count:
        said = "one generator" if len(generators) == 1 else f"{len(generators)} generators"
        raise invalid_argument(
            ("generator", f"{said} for {count} pictures: give a list with one for each, or seed for seed + k")
        )
    return [_seed(one) for one in generators]


def _seed(generator: torch.Generator) -> int:
    import torch  # which whoever made the generator has

    if not isinstance(generator, torch.Generator):
        raise invalid_argument(("generator", f"must be a torch.Generator, not {type(generator).__name__}"))
    if generator.device.type != "cpu":
        message = f"must be of the CPU, whose numbers the server draws, not of {generator.device}"
        raise invalid_argument(("generator", message))
    seed = generator.initial_seed()
    if not torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state()):
        message = "has been used since it was seeded, and the server draws from the start: seed it again"
        raise invalid_argument(("generator", message))
    torch.rand((), generator=generator)
    return seed


def _file(picture: PIL.Image.Image | bytes, name: str) -> bytes:
    """The file of a picture, without loss."""
    import PIL.Image

    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, PIL.Image.Image):
        raise invalid_argument(
            (name, f"must be one PIL image or a file's bytes, not {type(picture).__name__}")
        )
    written = io.BytesIO()
    plain = picture if picture.mode in ("1", "L", "LA", "RGB", "RGBA") else picture.convert("RGB")
    plain.save(written, "PNG")
    return written.getvalue()


def _initial(latents: Any) -> editing_pb2.InitialLatents:
    """Noise as the proto has it."""
    import numpy as np

    if isinstance(latents, editing_pb2.InitialLatents):
        return latents
    if hasattr(latents, "detach"):
        latents = latents.detach().float().cpu().numpy()
    return editing_pb2.InitialLatents(noise=array_to_message(np.asarray(latents, np.float32)))


def _told(pipeline: Pipeline, callback: Callback) -> Callable[[pb2.StepCompleted], None]:
    def tell(step: pb2.StepCompleted) -> None:
        changed = callback(pipeline, step.step - 1, 1000 * step.sigma, {})
        if changed:
            message = f"returned {', '.join(changed)}, and tensors stay in the server: return nothing"
            raise invalid_argument(("callback_on_step_end", message))

    return tell


def _opened(generation: Generation, as_array: bool) -> Images:
    import numpy as np
    import PIL.Image

    images: list[PIL.Image.Image] = []
    for image in generation.images:
        with PIL.Image.open(io.BytesIO(image.png or image.webp or image.jpeg)) as picture:
            picture.load()
            images.append(picture)
    if not as_array:
        return images
    return np.stack([np.asarray(one.convert("RGB"), np.float32) / 255 for one in images])
