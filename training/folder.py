"""The files of the default model's folder that are not weights."""

import json
from pathlib import Path
from typing import Any

from training.grounds import PLACES
from training.nouns import is_counted, plural
from training.vocabulary import OBJECTS

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
EXAMPLE_PROMPTS = (
    "two penguins",
    "a cat on a beach",
    "a giraffe and a pizza",
    "a red car in a forest",
    "an owl to the right of a guitar on a pink background",
)


def known_words() -> list[str]:
    """Every word for something that the model draws, singular and plural, and its places."""
    nouns = [noun for thing in OBJECTS.values() for noun in (thing.name, *thing.synonyms)]
    return sorted({*nouns, *(plural(noun) for noun in nouns if is_counted(noun)), *PLACES})


DEFAULTS = {
    "default_num_inference_steps": DEFAULT_STEPS,
    "default_guidance_scale": DEFAULT_GUIDANCE,
    "distilling_loras": {"four-steps": 4},
    "example_prompts": list(EXAMPLE_PROMPTS),
    "vocabulary": known_words(),
}


def write_index(folder: Path) -> None:
    """model_index.json and the scheduler as diffusers has them; triptych.json with the defaults for
    requests and the words that the model knows, beside what else is there.
    """
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    for name, content in (("model_index.json", MODEL_INDEX), ("scheduler/scheduler_config.json", SCHEDULER)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    write_settings(folder, DEFAULTS)


def write_latent_rgb(folder: Path, factors: list[list[float]], bias: list[float], digits: int) -> None:
    """Puts the map from latents to colours into triptych.json, its numbers rounded to so many digits."""
    rounded = [[round(number, digits) for number in row] for row in [*factors, bias]]
    write_settings(folder, {"latent_rgb": {"factors": rounded[:-1], "bias": rounded[-1]}})


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Puts settings into the folder's triptych.json, a line each, beside those that are there."""
    file = folder / "triptych.json"
    content = (json.loads(file.read_text()) if file.exists() else {}) | settings
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
