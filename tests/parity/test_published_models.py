"""Every published model by its real configs, without memory: all keys are used, none is asked for besides."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.mistral3.configuration_mistral3 import Mistral3Config
from transformers.models.mistral3.modeling_mistral3 import Mistral3ForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from tests.parity.test_flux2_transformer import PUBLIC as FLUX2
from tests.parity.test_flux_transformer import PUBLIC as FLUX
from tests.parity.test_sd3_transformer import PUBLIC as SD3
from tests.parity.test_z_image_transformer import REAL as Z_IMAGE
from tests.shared.checkpoints import original_names
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.compute import loading
from triptych.families import family_of_transformer
from triptych.families.family import GuidanceInput
from triptych.families.layouts import diffusers_tensors
from triptych_coordinator.sampling.sigmas import DynamicShift, EmpiricalShift, FixedMu
from triptych_coordinator.sampling_config import sampling_of
from triptych_denoiser.models import load_transformer
from triptych_text_encoder.components import load_text_model
from triptych_vae_codec.models import load_autoencoder

reference: Any = diffusers  # most of it has no types

META = torch.device("meta")
Component = tuple[str, dict[str, Any]]
"""A class and its config."""

CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN3_8B: dict[str, Any] = QWEN3_4B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
SD3_ENCODERS: dict[str, Component] = {
    "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
    "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
    "text_encoder_3": ("T5EncoderModel", T5_XXL),
}
FLUX_ENCODERS: dict[str, Component] = {
    "text_encoder": ("CLIPTextModel", CLIP_L),
    "text_encoder_2": ("T5EncoderModel", T5_XXL),
}
QWEN3_VL_4B: dict[str, Any] = {
    "text_config": {name: QWEN3_4B[name] for name in QWEN3_4B if name != "tie_word_embeddings"},
    "vision_config": {"out_hidden_size": 2560},
}
QWEN3_VL_8B: dict[str, Any] = {
    "text_config": {name: QWEN3_8B[name] for name in QWEN3_8B if name != "tie_word_embeddings"},
    "vision_config": {"out_hidden_size": 4096},
}
QWEN2_5_VL_7B: dict[str, Any] = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"out_hidden_size": 3584},
}
QWEN_IMAGE_ENCODERS: dict[str, Component] = {
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL_7B)
}
QWEN_IMAGE21_ENCODERS: dict[str, Component] = {
    "text_encoder": ("Qwen3VLForConditionalGeneration", QWEN3_VL_8B)
}
FLUX3_ENCODERS: dict[str, Component] = {"text_encoder": ("Qwen3VLForConditionalGeneration", QWEN3_VL_4B)}
KREA2_ENCODERS: dict[str, Component] = {"text_encoder": ("Qwen3VLModel", QWEN3_VL_4B)}
MISTRAL_3: dict[str, Any] = {
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
        "max_position_embeddings": 131072,
    },
    "vision_config": {"model_type": "pixtral"},
}
Z_IMAGE_ENCODERS: dict[str, Component] = {"text_encoder": ("Qwen3Model", QWEN3_4B)}
FLUX2_ENCODERS: dict[str, Component] = {"text_encoder": ("Qwen3ForCausalLM", QWEN3_4B)}
VAE_SIZES = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}


def autoencoder_kl(scaling_factor: float, shift_factor: float) -> Component:
    scales = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    convs = {"use_quant_conv": False, "use_post_quant_conv": False}
    return "AutoencoderKL", {**VAE_SIZES, "latent_channels": 16, **convs, **scales}


FLUX2_VAE: Component = (
    "AutoencoderKLFlux2",
    {**VAE_SIZES, "latent_channels": 32, "batch_norm_eps": 1e-4, "patch_size": (2, 2)},
)
QWEN_IMAGE_VAE: Component = ("AutoencoderKLQwenImage", {})
QWEN_IMAGE21_VAE: Component = (
    "AutoencoderKLQwenImage21",
    {"decoder_base_dim": 144, "latents_mean": [0.0] * 64, "latents_std": [1.0] * 64},
)
PIPELINES: dict[str, tuple[str, dict[str, Component], Component]] = {
    "SD3Transformer2DModel": ("StableDiffusion3Pipeline", SD3_ENCODERS, autoencoder_kl(1.5305, 0.0609)),
    "FluxTransformer2DModel": ("FluxPipeline", FLUX_ENCODERS, autoencoder_kl(0.3611, 0.1159)),
    "Flux2Transformer2DModel": ("Flux2KleinPipeline", FLUX2_ENCODERS, FLUX2_VAE),
    "Flux3Transformer2DModel": ("Flux3ModularPipeline", FLUX3_ENCODERS, FLUX2_VAE),
    "Krea2Transformer2DModel": ("Krea2Pipeline", KREA2_ENCODERS, QWEN_IMAGE_VAE),
    "QwenImageTransformer2DModel": ("QwenImagePipeline", QWEN_IMAGE_ENCODERS, QWEN_IMAGE_VAE),
    "QwenImage21Transformer2DModel": ("QwenImage21Pipeline", QWEN_IMAGE21_ENCODERS, QWEN_IMAGE21_VAE),
    "ZImageTransformer2DModel": ("ZImagePipeline", Z_IMAGE_ENCODERS, autoencoder_kl(0.3611, 0.1159)),
}
MISTRAL_3_CLASS = "Mistral3ForConditionalGeneration"
TEXT_MODELS: dict[str, tuple[Any, Any]] = {
    "CLIPTextModel": (CLIPTextModel, CLIPTextConfig),
    "CLIPTextModelWithProjection": (CLIPTextModelWithProjection, CLIPTextConfig),
    "T5EncoderModel": (T5EncoderModel, T5Config),
    "Qwen3Model": (Qwen3Model, Qwen3Config),
    "Qwen3ForCausalLM": (Qwen3ForCausalLM, Qwen3Config),
    "Qwen3VLModel": (Qwen3VLModel, Qwen3VLConfig),
    "Qwen2_5_VLForConditionalGeneration": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
    "Qwen3VLForConditionalGeneration": (Qwen3VLForConditionalGeneration, Qwen3VLConfig),
    MISTRAL_3_CLASS: (Mistral3ForConditionalGeneration, Mistral3Config),
}
DYNAMIC = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

QWEN_SHIFT = DYNAMIC | {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}

(
    SD3_CLASS,
    FLUX_CLASS,
    FLUX2_CLASS,
    FLUX3_CLASS,
    KREA2_CLASS,
    QWEN_IMAGE_CLASS,
    QWEN_IMAGE21_CLASS,
    Z_IMAGE_CLASS,
) = PIPELINES
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "stable-diffusion-3-medium-diffusers": (SD3_CLASS, SD3["SD3-medium"][0], {"shift": 3.0}),
    "stable-diffusion-3.5-medium": (SD3_CLASS, SD3["SD3.5-medium"][0], {"shift": 3.0}),
    "stable-diffusion-3.5-large": (SD3_CLASS, SD3["SD3.5-large"][0], {"shift": 3.0}),
    "stable-diffusion-3.5-large-turbo": (SD3_CLASS, SD3["SD3.5-large"][0], {"shift": 3.0}),
    "FLUX.1-dev": (FLUX_CLASS, FLUX["FLUX.1-dev"][0], DYNAMIC),
    "FLUX.1-schnell": (FLUX_CLASS, FLUX["FLUX.1-schnell"][0], {"shift": 1.0}),
    "FLUX.2-dev": (FLUX2_CLASS, FLUX2["FLUX.2-dev"][0], DYNAMIC),
    "FLUX.2-klein-4B": (FLUX2_CLASS, FLUX2["FLUX.2-klein-4B"][0], DYNAMIC),
    "FLUX.2-klein-9B": (FLUX2_CLASS, FLUX2["FLUX.2-klein-9B"][0], DYNAMIC),
    "FLUX.2-klein-base-4B": (FLUX2_CLASS, FLUX2["FLUX.2-klein-4B"][0], DYNAMIC),
    "FLUX.2-klein-base-9B": (FLUX2_CLASS, FLUX2["FLUX.2-klein-9B"][0], DYNAMIC),
    "flux-3-image-klein": (FLUX3_CLASS, {"flow_map": True}, {"shift": 6.93}),
    "flux-3-image-klein-base": (FLUX3_CLASS, {}, {"shift": 6.93}),
    "Krea-2-Raw": (KREA2_CLASS, {}, DYNAMIC | {"max_image_seq_len": 6400}),
    "Krea-2-Turbo": (KREA2_CLASS, {}, DYNAMIC | {"max_image_seq_len": 6400}),
    "Qwen-Image": (QWEN_IMAGE_CLASS, {}, QWEN_SHIFT),
    "Qwen-Image-2512": (QWEN_IMAGE_CLASS, {}, QWEN_SHIFT),
    "Qwen-Image-2.1": (QWEN_IMAGE21_CLASS, {}, QWEN_SHIFT),
    "Qwen-Image-2.1-Turbo": (QWEN_IMAGE21_CLASS, {}, {"shift": 1.0}),
    "Z-Image": (Z_IMAGE_CLASS, Z_IMAGE, {"shift": 6.0}),
    "Z-Image-Turbo": (Z_IMAGE_CLASS, Z_IMAGE, {"shift": 3.0}),
}
"""By the repository's name: the transformer's class and config, and the scheduler's config."""
INDICES = {name: {"is_distilled": "base" not in name} for name in MODELS if "FLUX.2-klein" in name}
TURBO_LEVELS = [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568]
INDICES["Qwen-Image-2.1-Turbo"] = {"sample_sigmas": TURBO_LEVELS}
INDICES["Krea-2-Turbo"] = {"is_distilled": True}
"""What model_index.json says besides."""


OF_NO_USE = {"lm_head.weight", "bn.num_batches_tracked"}
"""A head for words, and a count of training."""
OF_ANOTHER_USE = r"^(model\.)?(visual|vision_tower|multi_modal_projector)\.|\.time_conv\."
"""Eyes, and what joins frames of videos."""


class Recorded(Mapping[str, Tensor]):
    """Tensors, and the names of those that were looked up."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.used: set[str] = set()
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class Published(Checkpoint):
    """A published model with its tensors on "meta"; names and shapes are diffusers' and transformers'."""

    def __init__(self, name: str, folder: Path) -> None:
        class_name, transformer, scheduler = MODELS[name]
        pipeline, encoders, vae = PIPELINES[class_name]
        if name.startswith("FLUX.2") and name.endswith("9B"):
            encoders = {"text_encoder": ("Qwen3ForCausalLM", QWEN3_8B)}
        if name == "flux-3-image-klein":
            pipeline = "Flux3DistilledModularPipeline"
        if name == "FLUX.2-dev":
            pipeline, encoders = "Flux2Pipeline", {"text_encoder": (MISTRAL_3_CLASS, MISTRAL_3)}
        self.components: dict[str, Component] = {
            "transformer": (class_name, transformer),
            "vae": vae,
            "scheduler": ("FlowMatchEulerDiscreteScheduler", scheduler),
            **encoders,
        }
        index: dict[str, Any] = {component: ["", kind] for component, (kind, _) in self.components.items()}
        index |= INDICES.get(name, {})
        root = folder / name
        root.mkdir()
        (root / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **index}))
        super().__init__(root)
        self.read: dict[str, Recorded] = {}

    def folder(self, component: str) -> Path:
        return self.path / component

    def config(self, component: str) -> dict[str, Any]:
        class_name, config = self.components[component]
        return {"_class_name": class_name} | config

    def tensors(self, component: str) -> Recorded:
        self.read[component] = Recorded(published_tensors(*self.components[component]))
        return self.read[component]

    def unused(self, component: str) -> set[str]:
        return set(self.read[component]) - self.read[component].used


def published_tensors(class_name: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by the names that the published files have, on "meta"."""
    with META:
        if class_name in ("AutoencoderKL", "AutoencoderKLFlux2"):
            blocks = {
                "down_block_types": ("DownEncoderBlock2D",) * 4,
                "up_block_types": ("UpDecoderBlock2D",) * 4,
            }
            return dict(getattr(reference, class_name)(**config, **blocks).state_dict())
        if class_name not in TEXT_MODELS:
            return dict(getattr(reference, class_name)(**config).state_dict())
        model_class, config_class = TEXT_MODELS[class_name]
        tensors = dict(model_class(config_class(**config)).state_dict())
    if class_name == "T5EncoderModel":
        tensors.pop("encoder.embed_tokens.weight")  # it is shared.weight
        return tensors
    if class_name.startswith(("Qwen3VL", "Qwen2_5_VL", "Mistral3")):
        return tensors
    prefix = "model." if class_name.startswith("Qwen3") else "text_model."
    return {
        name if name.startswith((prefix, "text_projection", "lm_head")) else prefix + name: tensor
        for name, tensor in tensors.items()
    }


def copy_without_memory(
    model: Any, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *_: object
) -> None:
    for name, target in targets.items():
        loading.copy_weight(name, target, tensors[name])


@pytest.mark.parametrize("name", MODELS)
def test_the_transformer_uses_every_tensor(name: str, tmp_path: Path) -> None:
    checkpoint = Published(name, tmp_path)
    load_transformer(checkpoint, "meta", torch.bfloat16)
    assert not checkpoint.unused("transformer")


@pytest.mark.parametrize(
    "name",
    [
        "stable-diffusion-3.5-large",
        "FLUX.1-dev",
        "FLUX.2-dev",
        "FLUX.2-klein-4B",
        "FLUX.2-klein-9B",
        "flux-3-image-klein",
        "Krea-2-Raw",
        "Qwen-Image",
        "Qwen-Image-2.1",
        "Z-Image",
    ],
)
def test_vae_and_text_encoders_use_every_tensor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Published(name, tmp_path)
    load_autoencoder(checkpoint, META, "bfloat16", "none")
    # Buffers that no file has are real in a text encoder: only the weights are left without memory.
    monkeypatch.setattr(loading, "fill", copy_without_memory)
    encoders = [component for component in checkpoint.components if component.startswith("text_encoder")]
    for component in encoders:
        load_text_model(checkpoint, component, torch.bfloat16, torch.device("cpu"))
    for component in ("vae", *encoders):
        unused = {name for name in checkpoint.unused(component) if not re.search(OF_ANOTHER_USE, name)}
        assert unused <= OF_NO_USE, component


@pytest.mark.parametrize(
    ("name", "steps", "scale", "guidance", "shift"),
    [
        ("stable-diffusion-3-medium-diffusers", 28, 7.0, GuidanceInput.BRANCHES, 3.0),
        ("stable-diffusion-3.5-medium", 28, 7.0, GuidanceInput.BRANCHES, 3.0),
        ("stable-diffusion-3.5-large", 28, 7.0, GuidanceInput.BRANCHES, 3.0),
        ("stable-diffusion-3.5-large-turbo", 4, 1.0, GuidanceInput.BRANCHES, 3.0),
        ("FLUX.1-dev", 28, 3.5, GuidanceInput.EMBEDDED, DynamicShift(256, 4096, 0.5, 1.15)),
        ("FLUX.1-schnell", 4, 1.0, GuidanceInput.NONE, 1.0),
        ("FLUX.2-dev", 50, 4.0, GuidanceInput.EMBEDDED, EmpiricalShift()),
        ("FLUX.2-klein-4B", 4, 1.0, GuidanceInput.NONE, EmpiricalShift()),
        ("FLUX.2-klein-9B", 4, 1.0, GuidanceInput.NONE, EmpiricalShift()),
        ("FLUX.2-klein-base-4B", 50, 4.0, GuidanceInput.BRANCHES, EmpiricalShift()),
        ("FLUX.2-klein-base-9B", 50, 4.0, GuidanceInput.BRANCHES, EmpiricalShift()),
        ("flux-3-image-klein", 16, 1.0, GuidanceInput.NONE, 6.93),
        ("flux-3-image-klein-base", 50, 3.5, GuidanceInput.BRANCHES, 6.93),
        ("Krea-2-Raw", 28, 5.5, GuidanceInput.BRANCHES, DynamicShift(256, 6400, 0.5, 1.15)),
        ("Krea-2-Turbo", 8, 1.0, GuidanceInput.BRANCHES, FixedMu(1.15)),
        ("Qwen-Image", 50, 4.0, GuidanceInput.BRANCHES, DynamicShift(256, 8192, 0.5, 0.9)),
        ("Qwen-Image-2512", 50, 4.0, GuidanceInput.BRANCHES, DynamicShift(256, 8192, 0.5, 0.9)),
        ("Qwen-Image-2.1", 40, 1.0, GuidanceInput.BRANCHES, DynamicShift(256, 8192, 0.5, 0.9)),
        ("Qwen-Image-2.1-Turbo", 8, 1.0, GuidanceInput.BRANCHES, 1.0),
        ("Z-Image", 50, 6.0, GuidanceInput.BRANCHES, 6.0),
        ("Z-Image-Turbo", 8, 1.0, GuidanceInput.BRANCHES, 3.0),
    ],
)
def test_a_request_that_says_nothing_gets_the_models_own_sampling(
    name: str, steps: int, scale: float, guidance: GuidanceInput, shift: Any, tmp_path: Path
) -> None:
    sampling = sampling_of(Published(name, tmp_path))
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (steps, scale)
    assert (sampling.guidance, sampling.schedule.shift) == (guidance, shift)


@pytest.mark.parametrize("name", MODELS)
def test_the_original_file_gives_the_same_names_and_shapes(name: str) -> None:
    class_name, config, _ = MODELS[name]
    expected = published_tensors(class_name, config)
    original = original_names.TRANSFORMERS[class_name](expected)
    inner = {key: tuple(tensor.shape) for key, tensor in original.items()}
    file = family_of_transformer(class_name).original
    assert file.mark in inner
    found = file.config(inner)
    table = file.table(inner, found)
    sources = diffusers_tensors(table, inner)
    shapes = {key: (change or _same)(original[source]).shape for key, (source, change) in sources.items()}
    assert shapes == {key: tensor.shape for key, tensor in expected.items()}
    known = {key: value for key, value in config.items() if key in found}
    assert {key: found[key] for key in known} == json.loads(json.dumps(known))


def _same(tensor: Tensor) -> Tensor:
    return tensor
