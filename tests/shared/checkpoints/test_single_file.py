"""Original files of every family are read as if diffusers had saved them, to the bit."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from tests import tiny_flux2_dev
from tests.shared.checkpoints import original_names
from tests.tiny_checkpoint import ENCODER_WIDTH, sd3_pipeline
from tests.tiny_flux import flux_pipeline
from tests.tiny_flux2 import flux2_pipeline, flux2_vae
from tests.tiny_flux2_dev import flux2_dev_pipeline
from tests.tiny_qwen_image import qwen_image_pipeline, qwen_image_vae
from tests.tiny_qwen_image21 import qwen_image21_vae
from tests.tiny_z_image import z_image_pipeline
from triptych.checkpoints.file_parts import shapes_of
from triptych.checkpoints.formats import read_contents
from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import CheckpointError
from triptych.families import family_of, qwen_image, qwen_image21
from triptych.families.family import GuidanceInput
from triptych_coordinator.sampling.sigmas import EmpiricalShift
from triptych_coordinator.sampling_config import sampling_of
from triptych_denoiser.models import load_transformer
from triptych_text_encoder.components import load_text_model
from triptych_vae_codec.models import load_autoencoder

reference: Any = diffusers  # most of it has no types
converters: Any = single_file_utils

Tensors = dict[str, torch.Tensor]
SD3_CONFIGS: dict[str, dict[str, Any]] = {
    "SD3": {"qk_norm": None, "num_layers": 2, "pos_embed_max_size": 8},
    "SD3.5-medium": {"qk_norm": "rms_norm", "num_layers": 3, "dual_attention_layers": (0, 1)},
    "SD3.5-large": {"qk_norm": "rms_norm", "num_layers": 1},
}


def sd3_transformer(**config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"sample_size": 128, "patch_size": 2, "in_channels": 4, "pos_embed_max_size": 12}
    sizes |= {"attention_head_dim": 64, "num_attention_heads": 1, "caption_projection_dim": 64}
    sizes |= {"joint_attention_dim": 24, "pooled_projection_dim": 20, "out_channels": 4}
    return reference.SD3Transformer2DModel(**sizes | config)


def flux_transformer(guidance: bool, **config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"in_channels": 16, "out_channels": 16, "num_layers": 2, "num_single_layers": 3}
    sizes |= {"attention_head_dim": 128, "num_attention_heads": 1}
    sizes |= {"joint_attention_dim": 24, "pooled_projection_dim": 20}
    return reference.FluxTransformer2DModel(**sizes | config, guidance_embeds=guidance)


def vae(quant_convs: bool = False) -> Any:
    torch.manual_seed(0)
    return reference.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        latent_channels=4,
        use_quant_conv=quant_convs,
        use_post_quant_conv=quant_convs,
    )


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def save(tensors: Tensors, file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def original_vae(model: Any) -> Tensors:
    return original_names.autoencoder(model.state_dict(), levels=3)


def assert_same(found: Any, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_config(config: dict[str, Any], model: Any) -> None:
    """What the shapes tell is what diffusers has; a list and a tuple are the same."""
    expected = json.loads(json.dumps(dict(model.config)))
    assert config == {name: expected[name] for name in config}


@pytest.mark.parametrize("kind", SD3_CONFIGS)
def test_an_sd3_transformer_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    model = sd3_transformer(**SD3_CONFIGS[kind])
    original = prefixed("model.diffusion_model.", original_names.sd3_transformer(model.state_dict()))
    checkpoint = open_checkpoint(str(save(original, tmp_path / "sd3.safetensors")))
    assert checkpoint.class_name("transformer") == "SD3Transformer2DModel"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_sd3_transformer_checkpoint_to_diffusers(original),
    )
    assert_config(checkpoint.config("transformer"), model)


@pytest.mark.parametrize(("guidance", "prefix"), [(True, ""), (False, "model.diffusion_model.")])
def test_a_flux_transformer_comes_back_to_the_bit(guidance: bool, prefix: str, tmp_path: Path) -> None:
    model = flux_transformer(guidance)
    original = prefixed(prefix, original_names.flux_transformer(model.state_dict()))
    checkpoint = open_checkpoint(str(save(original, tmp_path / "flux.safetensors")))
    assert checkpoint.class_name("transformer") == "FluxTransformer2DModel"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_config(checkpoint.config("transformer"), model)


def test_flux_at_its_own_width_is_what_diffusers_converts_it_to(tmp_path: Path) -> None:
    """diffusers' conversion knows only FLUX.1's width, 3072: here with one column of every matrix."""
    rows = {"img_in": 3072, "qkv": 3 * 3072, "linear1": 7 * 3072, "final_layer.adaLN_modulation.1": 2 * 3072}
    small = flux_transformer(True, num_layers=1, num_single_layers=1).state_dict()
    original = {}
    for name, tensor in original_names.flux_transformer(small).items():
        count = next((rows[part] for part in rows if part in name), 128)
        original[name] = torch.randn(count, 1) if tensor.ndim == 2 else torch.randn(count)
    checkpoint = open_checkpoint(str(save(original, tmp_path / "flux.safetensors")))
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_flux_transformer_checkpoint_to_diffusers(dict(original)),
    )


def flux2_transformer(**config: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"in_channels": 16, "num_layers": 2, "num_single_layers": 3, "joint_attention_dim": 24}
    sizes |= {"attention_head_dim": 16, "num_attention_heads": 2, "guidance_embeds": False}
    return reference.Flux2Transformer2DModel(**sizes | config, axes_dims_rope=(4, 4, 4, 4))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux2_transformer_comes_back_to_the_bit(prefix: str, tmp_path: Path) -> None:
    model = flux2_transformer()
    original = original_names.flux2_transformer(model.state_dict())
    file = save(prefixed(prefix, original), tmp_path / "flux-2-klein-4b.safetensors")
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.class_name("transformer") == "Flux2Transformer2DModel"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_flux2_transformer_checkpoint_to_diffusers(dict(original)),
    )
    assert_config(checkpoint.config("transformer"), model)
    sampling = sampling_of(checkpoint)
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (4, 1.0)
    assert sampling.schedule.shift == EmpiricalShift()


@pytest.mark.parametrize("counted", [True, False])
def test_flux2s_autoencoder_comes_back_to_the_bit(counted: bool, tmp_path: Path) -> None:
    flux2_pipeline().save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = flux2_vae(block_out_channels=(32, 32, 64, 64), norm_num_groups=32, layers_per_block=2)
    original = original_names.flux2_autoencoder(model.state_dict(), levels=4)
    if not counted:
        del original["bn.num_batches_tracked"]
    file = save(original, tmp_path / "flux2-vae.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "base"), weights=[str(file)])
    assert checkpoint.class_name("vae") == "AutoencoderKLFlux2"
    codec = load_autoencoder(checkpoint, torch.device("cpu"), "float32", "none")
    expected = model.state_dict()
    assert_same(codec.state_dict(), {name: expected[name] for name in codec.state_dict()})
    config = checkpoint.config("vae")
    assert config.pop("sample_size") == 1024
    assert config.pop("decoder_block_out_channels") == [32, 32, 64, 64]
    assert_config(config, model)


def test_a_file_of_flux2_dev_is_known_by_its_guidance(tmp_path: Path) -> None:
    model = flux2_transformer(guidance_embeds=True, joint_attention_dim=48)
    original = original_names.flux2_transformer(model.state_dict())
    file = str(save(original, tmp_path / "mine.safetensors"))
    checkpoint = open_checkpoint(file)
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_flux2_transformer_checkpoint_to_diffusers(dict(original)),
    )
    assert_config(checkpoint.config("transformer"), model)
    tiny_flux2_dev.save(flux2_dev_pipeline(), tmp_path / "dev")
    for found in (checkpoint, open_checkpoint(file, base=str(tmp_path / "dev"))):
        assert found.index["_class_name"] == "Flux2Pipeline"
        sampling = sampling_of(found)
        assert (sampling.num_inference_steps, sampling.guidance_scale) == (50, 4.0)
        assert sampling.guidance is GuidanceInput.EMBEDDED
    flux2_pipeline().save_pretrained(tmp_path / "klein")
    with pytest.raises(
        CheckpointError, match=r"is for a Flux2Pipeline, but the base .* a Flux2KleinPipeline"
    ):
        open_checkpoint(file, base=str(tmp_path / "klein"))


@pytest.mark.parametrize("flow_map", [False, True])
def test_a_flux3_transformer_comes_back_to_the_bit(flow_map: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_single_layers": 3, "joint_attention_dim": 24, "cond_in_channels": 12}
    sizes |= {"in_channels": 16, "attention_head_dim": 16, "num_attention_heads": 2, "flow_map": flow_map}
    model = reference.Flux3Transformer2DModel(**sizes, axes_dims_rope=(4, 4, 4, 4))
    original = original_names.flux3_transformer(model.state_dict())
    original["repa_projectors.0.weight"] = torch.ones(2, 2)  # of training
    checkpoint = open_checkpoint(str(save(original, tmp_path / "mine.safetensors")))
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_flux3_transformer_checkpoint_to_diffusers(dict(original)),
    )
    assert_config(checkpoint.config("transformer"), model)
    pipeline = "Flux3DistilledModularPipeline" if flow_map else "Flux3ModularPipeline"
    assert checkpoint.index["_class_name"] == pipeline
    sampling = sampling_of(checkpoint)
    assert (sampling.num_inference_steps, sampling.guidance_scale) == ((16, 1.0) if flow_map else (50, 3.5))
    assert sampling.schedule.shift == 6.93


def test_a_file_of_flux1_kontext_is_known_by_its_name(tmp_path: Path) -> None:
    original = original_names.flux_transformer(flux_transformer(guidance=True).state_dict())
    flux_pipeline(guidance=True).save_pretrained(tmp_path / "base")
    for name, pipeline in {
        "flux1-dev-kontext_fp8": "FluxKontextPipeline",
        "flux1-dev": "FluxPipeline",
    }.items():
        file = str(save(original, tmp_path / f"{name}.safetensors"))
        for checkpoint in (open_checkpoint(file), open_checkpoint(file, base=str(tmp_path / "base"))):
            assert checkpoint.index["_class_name"] == pipeline


def test_files_of_qwen_image_edit_are_known_by_their_names(tmp_path: Path) -> None:
    weights = qwen_image_pipeline().transformer.state_dict()
    for name, pipeline in {
        "qwen_image_edit_2511_bf16": "QwenImageEditPlusPipeline",
        "Qwen-Image-Edit-2509-Lightning-4steps-V1.0": "QwenImageEditPlusPipeline",
        "qwen_image_edit_fp8_e4m3fn": "QwenImageEditPipeline",
        "qwen_image_2512_bf16": "QwenImagePipeline",
    }.items():
        file = save(weights, tmp_path / f"{name}.safetensors")
        assert open_checkpoint(str(file)).index["_class_name"] == pipeline


@pytest.mark.parametrize(
    ("name", "base_is_distilled", "steps", "scale"),
    [
        ("flux-2-klein-4b", False, 4, 1.0),
        ("flux-2-klein-base-4b", False, 50, 4.0),
        ("my-klein", False, 50, 4.0),
        ("my-klein", True, 4, 1.0),
    ],
)
def test_a_file_is_distilled_if_its_name_or_its_base_is(
    name: str, base_is_distilled: bool, steps: int, scale: float, tmp_path: Path
) -> None:
    flux2_pipeline(base_is_distilled).save_pretrained(tmp_path / "base")
    model = flux2_transformer(joint_attention_dim=48)
    file = save(original_names.flux2_transformer(model.state_dict()), tmp_path / f"{name}.safetensors")
    sampling = sampling_of(open_checkpoint(str(file), base=str(tmp_path / "base")))
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (steps, scale)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_z_image_transformer_comes_back_to_the_bit(prefix: str, tmp_path: Path) -> None:
    model = z_image_pipeline(n_refiner_layers=2).transformer
    original = original_names.z_image_transformer(model.state_dict())
    file = save(
        prefixed(prefix, original | {"norm_final.weight": torch.ones(32)}), tmp_path / "z.safetensors"
    )
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.class_name("transformer") == "ZImageTransformer2DModel"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_z_image_transformer_checkpoint_to_diffusers(dict(original)),
    )
    config = checkpoint.config("transformer")
    assert (config.pop("axes_lens"), config["axes_dims"]) == ([1536, 512, 512], [4, 6, 6])
    assert_config(config, model)
    with pytest.raises(CheckpointError, match="has no scheduler: name with --base"):
        checkpoint.config("scheduler")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("clean_references", [False, True])
def test_a_qwen_image_transformer_comes_back_to_the_bit(
    prefix: str, clean_references: bool, tmp_path: Path
) -> None:
    """Its authors' names are diffusers'; node editors mark models whose references have no noise."""
    sizes = {"attention_head_dim": 32, "axes_dims_rope": (4, 14, 14), "zero_cond_t": clean_references}
    model = qwen_image_pipeline(**sizes).transformer
    marked = {"__index_timestep_zero__": torch.ones(0)} if clean_references else {}
    file = save(prefixed(prefix, model.state_dict() | marked), tmp_path / "qwen_image_bf16.safetensors")
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.class_name("transformer") == "QwenImageTransformer2DModel"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_config(checkpoint.config("transformer"), model)
    assert checkpoint.config("scheduler")["shift_terminal"] == 0.02


def test_a_file_of_qwen_image_layered_is_refused(tmp_path: Path) -> None:
    sizes = {"attention_head_dim": 32, "axes_dims_rope": (4, 14, 14), "use_additional_t_cond": True}
    original = qwen_image_pipeline(**sizes).transformer.state_dict()
    file = save(original, tmp_path / "qwen_image_layered_bf16.safetensors")
    with pytest.raises(CheckpointError, match="use_additional_t_cond is true: Qwen-Image-Layered"):
        load_transformer(open_checkpoint(str(file)), "cpu", torch.float32)


def qwen_image21_transformer() -> Any:
    torch.manual_seed(0)
    sizes = {"in_channels": 8, "out_channels": 8, "num_layers": 2, "context_in_dim": 32, "mlp_ratio": 2}
    sizes |= {"attention_head_dim": 32, "num_attention_heads": 1}
    return reference.QwenImage21Transformer2DModel(**sizes, axes_dims_rope=(4, 14, 14))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_qwen_image21_transformer_comes_back_to_the_bit(prefix: str, tmp_path: Path) -> None:
    model = qwen_image21_transformer()
    original = original_names.qwen_image21_transformer(model.state_dict())
    file = save(prefixed(prefix, original), tmp_path / "qwen_image_2.1_bf16.safetensors")
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.class_name("transformer") == "QwenImage21Transformer2DModel"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert_same(
        checkpoint.tensors("transformer"),
        converters.convert_qwen_image21_transformer_checkpoint_to_diffusers(dict(original)),
    )
    assert_config(checkpoint.config("transformer"), model)


def published_vae(**config: Any) -> Any:
    """Of the published one's levels and blocks, which diffusers' conversion counts on."""
    torch.manual_seed(0)
    return qwen_image_vae(dim_mult=[1, 2, 4, 4], num_res_blocks=2, **config)


@pytest.mark.parametrize("where", ["vae.", "beside", "weights"])
def test_qwen_images_autoencoder_comes_back_to_the_bit(where: str, tmp_path: Path) -> None:
    """As Wan's authors name its kind, inside a file, beside it and laid over another."""
    pipeline = qwen_image_pipeline()
    model = published_vae(z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    original = original_names.wan_autoencoder(model.state_dict(), blocks=2)
    transformer = prefixed("model.diffusion_model.", pipeline.transformer.state_dict())
    if where == "weights":
        pipeline.save_pretrained(tmp_path / "base")
        model = published_vae()
        original = original_names.wan_autoencoder(model.state_dict(), blocks=2)
        file = save(original, tmp_path / "mine.safetensors")
        checkpoint = open_checkpoint(str(tmp_path / "base"), weights=[str(file)])
    elif where == "beside":
        save(original, tmp_path / "qwen_image_vae.safetensors")
        checkpoint = open_checkpoint(str(save(transformer, tmp_path / "qwen_image.safetensors")))
        alone = open_checkpoint(str(tmp_path / "qwen_image_vae.safetensors"))
        assert_same(alone.tensors("vae"), model.state_dict())
    else:
        inside = prefixed(where, original)
        checkpoint = open_checkpoint(str(save(transformer | inside, tmp_path / "aio.safetensors")))
    assert checkpoint.class_name("vae") == "AutoencoderKLQwenImage"
    assert_same(checkpoint.tensors("vae"), model.state_dict())
    assert_same(checkpoint.tensors("vae"), converters.convert_wan_vae_to_diffusers(original))
    config = checkpoint.config("vae")
    statistics = (config.pop("latents_mean"), config.pop("latents_std"))
    published = (list(qwen_image.LATENTS.mean), list(qwen_image.LATENTS.std))
    own = (model.config.latents_mean, model.config.latents_std)
    assert statistics == (own if where == "weights" else published)
    assert_config(config, model)
    assert load_autoencoder(checkpoint, torch.device("cpu"), "float32", "none")


def test_qwen2_5_vl_inside_a_file_and_in_one_of_its_own_is_the_models(tmp_path: Path) -> None:
    pipeline = qwen_image_pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    own = load_file(component_file(tmp_path / "base", "text_encoder"))
    tensors = {name: 2 * tensor for name, tensor in own.items()}
    alone = save(tensors, tmp_path / "qwen_2.5_vl_7b.safetensors")
    inside = prefixed("text_encoders.qwen25_7b.transformer.", tensors)
    transformer = prefixed("model.diffusion_model.", pipeline.transformer.state_dict())
    file = save(transformer | inside, tmp_path / "aio.safetensors")
    base = str(tmp_path / "base")
    found = [
        load_text_model(checkpoint, "text_encoder", torch.float32, torch.device("cpu")).state_dict()
        for checkpoint in (open_checkpoint(base, weights=[str(alone)]), open_checkpoint(str(file), base=base))
    ]
    for state in found:
        assert state.keys() == found[0].keys()
        for name, weight in state.items():
            assert torch.equal(weight, tensors[f"model.{name}"]), name


@pytest.mark.parametrize("quant_convs", [False, True])
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_the_vae_in_an_sd3_file_comes_back_to_the_bit(prefix: str, quant_convs: bool, tmp_path: Path) -> None:
    model, transformer = vae(quant_convs), original_names.sd3_transformer(sd3_transformer().state_dict())
    original = prefixed(prefix, original_vae(model))
    file = save(prefixed("model.diffusion_model.", transformer) | original, tmp_path / "sd3.safetensors")
    checkpoint = open_checkpoint(str(file))
    assert_same(checkpoint.tensors("vae"), model.state_dict())
    assert_same(
        checkpoint.tensors("vae"), converters.convert_ldm_vae_checkpoint(original, dict(model.config))
    )
    config = checkpoint.config("vae")
    assert (config.pop("scaling_factor"), config.pop("shift_factor")) == (1.5305, 0.0609)
    assert_config(config, model)


@pytest.fixture
def flux_file(tmp_path: Path) -> Path:
    original = original_names.flux_transformer(flux_transformer(True).state_dict())
    return save(original, tmp_path / "flux1-dev.safetensors")


def test_flux_has_its_vae_beside_it(flux_file: Path) -> None:
    assert not open_checkpoint(str(flux_file)).has("vae")
    model = vae()
    ae = save(original_vae(model), flux_file.with_name("ae.safetensors"))
    for file in (flux_file, ae):
        checkpoint = open_checkpoint(str(file))
        assert_same(checkpoint.tensors("vae"), model.state_dict())
        assert checkpoint.config("vae")["scaling_factor"] == 0.3611
        assert checkpoint.files("vae") == [ae]


def test_the_published_schedules_go_with_the_families(tmp_path: Path, flux_file: Path) -> None:
    sd3 = save(original_names.sd3_transformer(sd3_transformer().state_dict()), tmp_path / "sd3.safetensors")
    schnell = save(
        original_names.flux_transformer(flux_transformer(False).state_dict()), tmp_path / "s.safetensors"
    )
    assert open_checkpoint(str(sd3)).config("scheduler")["shift"] == 3.0
    assert open_checkpoint(str(schnell)).config("scheduler")["shift"] == 1.0
    dev = open_checkpoint(str(flux_file)).config("scheduler")
    assert (dev["use_dynamic_shifting"], dev["max_shift"], dev["max_image_seq_len"]) == (True, 1.15, 4096)


def test_a_schedule_is_read_without_torch_and_safetensors(flux_file: Path) -> None:
    program = """
import sys
from triptych.checkpoints.opening import open_checkpoint
print(open_checkpoint(sys.argv[1]).config("scheduler")["max_shift"])
assert not {"torch", "safetensors", "huggingface_hub", "gguf"} & set(sys.modules)
"""
    command = [sys.executable, "-c", program, str(flux_file)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "1.15\n"


def test_a_base_has_what_the_file_lacks(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = sd3_transformer()
    file = save(original_names.sd3_transformer(model.state_dict()), tmp_path / "mine.safetensors")
    base = open_checkpoint(str(tiny_checkpoint))
    checkpoint = open_checkpoint(str(file), base=str(tiny_checkpoint))
    assert checkpoint.name == "mine"
    assert_same(checkpoint.tensors("transformer"), model.state_dict())
    assert checkpoint.config("transformer")["joint_attention_dim"] == 24
    assert checkpoint.files("vae") == base.files("vae")
    assert checkpoint.folder("tokenizer") == tiny_checkpoint / "tokenizer"
    assert checkpoint.config("scheduler") == base.config("scheduler")
    assert checkpoint.index["_class_name"] == "StableDiffusion3Pipeline"
    assert not checkpoint.has("text_encoder_3")


def encoders_inside(folder: Path, **prefixes: str) -> Tensors:
    """The text encoders of a checkpoint's folder as Stability's files name them."""
    found = {}
    for component, prefix in prefixes.items():
        tensors = load_file(folder / component / "model.safetensors")
        found |= prefixed(f"text_encoders.{prefix}.transformer.", tensors)
    return found


def test_text_encoders_inside_an_sd3_file_are_its_own(tmp_path: Path) -> None:
    base = tmp_path / "base"
    sd3_pipeline(t5=True).save_pretrained(base)
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    inside = encoders_inside(base, **names)
    inside = {
        name: tensor.to(torch.float8_e4m3fn) if "t5xxl" in name else 2 * tensor
        for name, tensor in inside.items()
    }
    original = original_names.sd3_transformer(sd3_transformer().state_dict())
    file = save(prefixed("model.diffusion_model.", original) | inside, tmp_path / "sd3_incl_all.safetensors")
    checkpoint = open_checkpoint(str(file), base=str(base))
    for component, name in names.items():
        prefix = f"text_encoders.{name}.transformer."
        expected = {
            key.removeprefix(prefix): tensor for key, tensor in inside.items() if key.startswith(prefix)
        }
        found = checkpoint.tensors(component)
        assert set(found) == set(expected)
        assert all(torch.equal(found[key].float(), tensor.float()) for key, tensor in expected.items())
        assert checkpoint.files(component) == [file]
        assert checkpoint.config(component) == open_checkpoint(str(base)).config(component)
    model = load_text_model(checkpoint, "text_encoder_3", torch.float32, torch.device("cpu"))
    assert torch.equal(
        model.state_dict()["shared.weight"],
        inside["text_encoders.t5xxl.transformer.shared.weight"].float(),
    )


def test_clip_l_without_its_projection_has_the_identity(tmp_path: Path, tiny_checkpoint: Path) -> None:
    inside = encoders_inside(tiny_checkpoint, text_encoder="clip_l")
    del inside["text_encoders.clip_l.transformer.text_projection.weight"]
    original = original_names.sd3_transformer(sd3_transformer().state_dict())
    file = save(original | inside, tmp_path / "sd3_incl_clips.safetensors")
    checkpoint = open_checkpoint(str(file), base=str(tiny_checkpoint))
    projection = checkpoint.tensors("text_encoder")["text_projection.weight"]
    assert torch.equal(projection, torch.eye(ENCODER_WIDTH))
    assert checkpoint.files("text_encoder_2") == open_checkpoint(str(tiny_checkpoint)).files("text_encoder_2")


def test_text_encoders_inside_need_the_tokenizers_of_a_base(tmp_path: Path, tiny_checkpoint: Path) -> None:
    inside = encoders_inside(tiny_checkpoint, text_encoder="t5xxl")
    original = original_names.sd3_transformer(sd3_transformer().state_dict())
    file = save(original | inside, tmp_path / "sd3_incl_t5.safetensors")
    with pytest.raises(CheckpointError, match=r"has no tokenizer: name with --base"):
        open_checkpoint(str(file)).folder("tokenizer")
    assert not open_checkpoint(str(file), base=str(tiny_checkpoint)).has("text_encoder_3")


def test_defaults_are_those_beside_the_file_or_of_the_base(tmp_path: Path, tiny_checkpoint: Path) -> None:
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / "triptych.json").write_text('{"default_num_inference_steps": 5}')
    original = original_names.sd3_transformer(sd3_transformer().state_dict())
    file = save(original, tmp_path / "sd3.5_large_turbo.safetensors")
    assert sampling_of(open_checkpoint(str(file), base=str(tiny_checkpoint))).num_inference_steps == 4
    assert sampling_of(open_checkpoint(str(file), base=str(base))).num_inference_steps == 5
    file.with_name("triptych.json").write_text('{"default_num_inference_steps": 6}')
    assert sampling_of(open_checkpoint(str(file), base=str(base))).num_inference_steps == 6


def test_a_vae_alone_is_told_apart_by_its_base(tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = save(original_vae(vae()), tmp_path / "sd3_vae.safetensors")
    with pytest.raises(CheckpointError, match="does not say whose: name with --base"):
        open_checkpoint(str(file))
    config = open_checkpoint(str(file), base=str(tiny_checkpoint)).config("vae")
    assert (config["scaling_factor"], config["shift_factor"]) == (1.5, 0.06)
    assert config["block_out_channels"] == [32, 64, 64]


VAES: dict[str, Callable[[], Any]] = {
    "StableDiffusion3Pipeline": lambda: vae(quant_convs=True),
    "FluxPipeline": vae,
    "Flux2KleinPipeline": lambda: flux2_vae(
        block_out_channels=(32, 32, 64, 64), decoder_block_out_channels=(32, 64, 32, 64), norm_num_groups=32
    ),
    "Krea2Pipeline": lambda: published_vae(z_dim=16, **dict(qwen_image.LATENTS.vae_config)),
    "QwenImage21Pipeline": lambda: qwen_image21_vae(z_dim=64, **dict(qwen_image21.LATENTS.vae_config)),
}


@pytest.mark.parametrize("pipeline", VAES)
def test_a_vae_with_diffusers_names_serves_a_base_without_one(pipeline: str, tmp_path: Path) -> None:
    model = VAES[pipeline]()
    file = save(model.state_dict(), tmp_path / "mine.safetensors")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    checkpoint = open_checkpoint(str(tmp_path / "base"), weights=[str(file)])
    assert checkpoint.class_name("vae") == type(model).__name__
    tensors, expected = checkpoint.tensors("vae"), model.state_dict()
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name, _ in model.named_parameters())
    family = family_of(pipeline)
    assert family is not None
    shapes = {name: value for name, value in checkpoint.config("vae").items() if name != "sample_size"}
    scales = dict(family.latents.vae_config)
    assert {name: shapes.pop(name) for name in scales} == scales
    assert_config(shapes, model)
    assert load_autoencoder(checkpoint, torch.device("cpu"), "float32", "none")


def test_a_vae_of_another_family_is_refused(tmp_path: Path) -> None:
    file = save(vae().state_dict(), tmp_path / "mine.safetensors")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/model_index.json").write_text('{"_class_name": "Krea2Pipeline"}')
    with pytest.raises(
        CheckpointError, match="is an AutoencoderKL, and the AutoencoderKLQwenImage of a Krea2Pipeline"
    ):
        open_checkpoint(str(tmp_path / "base"), weights=[str(file)])


def component_file(folder: Path, component: str) -> Path:
    name = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
    return folder / component / f"{name}.safetensors"


def test_a_components_own_file_belongs_to_the_checkpoint_around_it(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(component_file(tiny_checkpoint, "transformer")))
    whole = open_checkpoint(str(tiny_checkpoint))
    assert checkpoint.config("transformer") == whole.config("transformer")
    assert_same(checkpoint.tensors("transformer"), dict(whole.tensors("transformer")))
    assert checkpoint.files("vae") == whole.files("vae")


@pytest.mark.parametrize("prefix", ["", "transformer.", "model.diffusion_model."])
def test_a_transformer_with_diffusers_names_has_its_bases_config(
    prefix: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = load_file(component_file(tiny_checkpoint, "transformer"))
    file = save(prefixed(prefix, tensors), tmp_path / "mine.safetensors")
    checkpoint = open_checkpoint(str(file), base=str(tiny_checkpoint))
    assert_same(checkpoint.tensors("transformer"), tensors)
    assert load_transformer(checkpoint, "cpu", torch.float32)
    with pytest.raises(CheckpointError, match="has no config of its transformer: name a base"):
        open_checkpoint(str(file)).config("transformer")


def test_shards_of_a_single_file_are_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(component_file(tiny_checkpoint, "transformer"))
    names = sorted(tensors)
    for number, own in ((1, names[::2]), (2, names[1::2])):
        save({name: tensors[name] for name in own}, tmp_path / f"t-0000{number}-of-00002.safetensors")
    for number in (1, 2):
        file = tmp_path / f"t-0000{number}-of-00002.safetensors"
        checkpoint = open_checkpoint(str(file), base=str(tiny_checkpoint))
        assert_same(checkpoint.tensors("transformer"), tensors)
    (tmp_path / "t-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"t-00002-of-00002\.safetensors is missing"):
        open_checkpoint(str(tmp_path / "t-00001-of-00002.safetensors"), base=str(tiny_checkpoint))


@pytest.fixture
def z_image(tmp_path: Path) -> Path:
    z_image_pipeline().save_pretrained(tmp_path / "z_image")
    return tmp_path / "z_image"


def test_files_of_text_encoder_and_vae_take_the_place_of_the_models_own(
    z_image: Path, tmp_path: Path
) -> None:
    tensors = {
        name: 2 * tensor for name, tensor in load_file(component_file(z_image, "text_encoder")).items()
    }
    encoder = save(tensors, tmp_path / "qwen_3_4b.safetensors")
    vae_file = save(original_vae(vae()), tmp_path / "ae.safetensors")
    checkpoint = open_checkpoint(str(z_image), weights=[str(encoder), str(vae_file)])
    assert (checkpoint.name, checkpoint.own_defaults) == ("z_image", z_image / "triptych.json")
    assert_same(checkpoint.tensors("text_encoder"), tensors)
    assert_same(checkpoint.tensors("vae"), vae().state_dict())
    assert checkpoint.files("text_encoder") == [encoder]
    assert checkpoint.folder("tokenizer") == z_image / "tokenizer"
    assert checkpoint.files("transformer") == open_checkpoint(str(z_image)).files("transformer")
    assert load_text_model(checkpoint, "text_encoder", torch.float32, torch.device("cpu"))
    transformer = component_file(z_image, "transformer")
    with pytest.raises(CheckpointError, match="has a transformer: name it with --model"):
        open_checkpoint(str(z_image), weights=[str(transformer)])


def test_a_text_encoder_that_fits_none_or_several_is_refused(
    z_image: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    clip = component_file(tiny_checkpoint, "text_encoder")
    with pytest.raises(CheckpointError, match="it is none of its own by class and width"):
        open_checkpoint(str(z_image), weights=[str(clip)])
    with pytest.raises(CheckpointError, match="it is as well text_encoder as text_encoder_2"):
        open_checkpoint(str(tiny_checkpoint), weights=[str(clip)])
    alone = Path(shutil.copy(clip, tmp_path / "clip_l.safetensors"))
    with pytest.raises(CheckpointError, match="is a text encoder: name with --base"):
        open_checkpoint(str(alone))


def test_what_a_file_lacks_is_named_with_the_way_out(flux_file: Path) -> None:
    checkpoint = open_checkpoint(str(flux_file))
    for read in (checkpoint.config, checkpoint.files, checkpoint.tensors, checkpoint.folder):
        with pytest.raises(CheckpointError, match=r"flux1-dev\.safetensors has no text_encoder.*--base"):
            read("text_encoder")


def test_a_base_of_another_family_is_refused(flux_file: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is for a FluxPipeline, but the base .* a StableDiffusion3Pipeline"
    ):
        open_checkpoint(str(flux_file), base=str(tiny_checkpoint))


def test_a_base_needs_a_file(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="a base is for a single file"):
        open_checkpoint(str(tiny_checkpoint), base="triptych-small")


def test_a_tensor_that_no_table_has_keeps_its_name(tmp_path: Path) -> None:
    original = original_names.sd3_transformer(sd3_transformer().state_dict())
    file = save(original | {"joint_blocks.0.x_block.lora.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    assert "joint_blocks.0.x_block.lora.weight" in open_checkpoint(str(file)).tensors("transformer")


@pytest.mark.parametrize("left_out", ["pos_embed", "context_embedder.weight", "x_embedder.proj.weight"])
def test_a_file_without_what_tells_its_config_is_refused(left_out: str, tmp_path: Path) -> None:
    original = original_names.sd3_transformer(sd3_transformer().state_dict())
    del original[left_out]
    with pytest.raises(CheckpointError, match=f"incomplete.*{left_out}"):
        open_checkpoint(str(save(original, tmp_path / "sd3.safetensors")))


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="key names of no known model"):
        open_checkpoint(str(save({"input_blocks.0.0.weight": torch.ones(1)}, tmp_path / "unet.safetensors")))
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_checkpoint(str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize(
    "content", [b"\0", b"\xff" * 8, b"\x02" + 7 * b"\0" + b"[]", b"\x10" + 7 * b"\0" + b'{"a": 1}']
)
def test_a_broken_header_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors is truncated or no safetensors file"):
        read_contents([file])


def test_a_header_tells_the_shapes_that_safetensors_tells(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(())}, file, metadata={"format": "pt"})
    assert shapes_of(read_contents([file]).tensors) == {"a": (2, 3), "b": ()}
