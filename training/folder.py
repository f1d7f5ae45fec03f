"""The files of the default model's folder that are not weights."""

import json
from pathlib import Path

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
    requests.
    """
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("model_index.json", MODEL_INDEX),
        ("scheduler/scheduler_config.json", SCHEDULER),
        ("triptych.json", DEFAULTS),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
