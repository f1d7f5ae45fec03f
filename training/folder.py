"""The files of the default model's folder that are not weights."""

import json
from pathlib import Path
from typing import Any

SHIFT = 3.0
DEFAULT_STEPS = 28
DEFAULT_GUIDANCE = 3.0

MODEL_INDEX = {
    "_class_name": "StableDiffusion3Pipeline",
    "_diffusers_version": "0.36.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": [None, None],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": [None, None],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.36.0",
    "num_train_timesteps": 1000,
    "shift": SHIFT,
}
DEFAULTS = {"default_num_inference_steps": DEFAULT_STEPS, "default_guidance_scale": DEFAULT_GUIDANCE}


def write_index(folder: Path) -> None:
    """model_index.json and the scheduler as diffusers has them; triptych.json with the defaults for
    requests, beside the map for previews if it was there.
    """
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("model_index.json", MODEL_INDEX),
        ("scheduler/scheduler_config.json", SCHEDULER),
        ("triptych.json", _settings(folder) | DEFAULTS),
    ):
        _write(folder / name, content)


def write_latent_rgb(folder: Path, factors: list[list[float]], bias: list[float], digits: int) -> None:
    """Puts the map from latents to colours into triptych.json, its numbers rounded to so many digits."""
    rounded = [[round(number, digits) for number in row] for row in [*factors, bias]]
    latent_rgb = {"factors": rounded[:-1], "bias": rounded[-1]}
    _write(folder / "triptych.json", _settings(folder) | {"latent_rgb": latent_rgb})


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "triptych.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
