"""Triptych's nodes. Pictures are float32 [pictures, height, width, 3], masks [1, height, width], 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from triptych.client import Pipeline

Inputs = dict[str, dict[str, tuple[Any, ...]]]


def _inputs(**others: tuple[Any, ...]) -> Inputs:
    """What both nodes take. 0 of width, height and steps, and -1 of guidance, are the model's own."""
    text = {"multiline": True, "dynamicPrompts": True}
    size = {"default": 0, "min": 0, "max": 16384, "step": 8}
    return {
        "required": {
            "server": ("STRING", {"default": "127.0.0.1:50050"}),
            "prompt": ("STRING", text),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
            **others,
        },
        "optional": {
            "negative_prompt": ("STRING", text),
            "width": ("INT", size),
            "height": ("INT", size),
            "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),
            "guidance": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1}),
            "batch_size": ("INT", {"default": 1, "min": 1, "max": 64}),
        },
    }


class TriptychGenerate:
    """Pictures of a prompt."""

    RETURN_TYPES: ClassVar = ("IMAGE",)
    FUNCTION: ClassVar = "generate"
    CATEGORY: ClassVar = "image/triptych"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The sockets and widgets."""
        return _inputs()

    def generate(self, **asked: Any) -> tuple[torch.Tensor]:
        """The pictures."""
        return (_pictures(asked),)


class TriptychEdit:
    """Pictures from a picture; where a mask is 1 it is made anew."""

    RETURN_TYPES: ClassVar = ("IMAGE",)
    FUNCTION: ClassVar = "edit"
    CATEGORY: ClassVar = "image/triptych"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """The sockets and widgets."""
        strength = ("FLOAT", {"default": 0.6, "min": 0.01, "max": 1.0, "step": 0.01})
        inputs = _inputs(image=("IMAGE",), strength=strength)
        return {**inputs, "optional": {**inputs["optional"], "mask": ("MASK",)}}

    def edit(
        self, image: torch.Tensor, strength: float, mask: torch.Tensor | None = None, **asked: Any
    ) -> tuple[torch.Tensor]:
        """The pictures. Raises ValueError for several pictures in one: each needs a node of its own."""
        if image.shape[0] != 1:
            raise ValueError(f"{image.shape[0]} pictures came, and one is edited: select one of the batch")
        opened = _opened(image[0])
        drawn = None if mask is None else _opened(mask.reshape(-1, *mask.shape[-2:])[0])
        return (_pictures(asked, image=opened, mask_image=drawn, strength=strength),)


def _pictures(asked: dict[str, Any], **others: Any) -> torch.Tensor:
    """What the server makes, float32 [pictures, height, width, 3]."""
    steps, guidance = asked.get("steps") or None, asked.get("guidance", -1.0)
    with Pipeline(asked["server"]) as pipe:
        made = pipe(
            asked["prompt"],
            negative_prompt=asked.get("negative_prompt") or None,
            seed=asked["seed"],
            width=asked.get("width") or None,
            height=asked.get("height") or None,
            num_inference_steps=steps,
            guidance_scale=None if guidance < 0 else guidance,
            num_images_per_prompt=asked.get("batch_size", 1),
            callback_on_step_end=_progress(),
            output_type="np",
            return_dict=False,
            **others,
        )
    return torch.from_numpy(made[0])


def _opened(pixels: torch.Tensor) -> Image.Image:
    """A picture [height, width, 3], or a mask [height, width]."""
    return Image.fromarray(np.rint(np.clip(pixels.cpu().numpy(), 0, 1) * 255).astype(np.uint8))


def _progress() -> Callable[..., None] | None:
    """Shows the steps in the editor, and hears of its button to interrupt; None outside of it."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar = ProgressBar(1000)

    def step(pipeline: Pipeline, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(round(1000 - timestep))

    return step
