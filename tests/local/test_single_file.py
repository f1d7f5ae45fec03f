"""A picture from an original file is the picture from the folder that diffusers saves, to the bit."""

import io
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.shared.checkpoints import original_names
from tests.shared.checkpoints.gguf_writing import llama_names, quantized, rounded, write
from tests.tiny_checkpoint import ENCODER_WIDTH, LATENT_CHANNELS, lively
from tests.tiny_z_image import z_image_pipeline
from triptych.checkpoints.opening import open_checkpoint
from triptych_local.running.fused import fused_client
from triptych_local.running.settings import ModelChoice

reference: Any = diffusers


async def pixels(choice: ModelChoice) -> Any:
    async with fused_client(choice) as client:
        generation = await client.generate("a cat", seed=7, num_inference_steps=2, width=64, height=48)
    return np.asarray(Image.open(io.BytesIO(generation.images[0].png)))


def own_encoder(folder: Path) -> dict[str, torch.Tensor]:
    """Changes a folder's CLIP-L; what it has then, as a file has it inside."""
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {name: 1.5 * tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return {f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in tensors.items()}


async def test_an_sd3_file_on_a_base_gives_the_folders_picture(tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch.manual_seed(0)
    transformer = lively(
        reference.SD3Transformer2DModel(
            sample_size=8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=1,
            joint_attention_dim=2 * ENCODER_WIDTH,
            caption_projection_dim=64,
            pooled_projection_dim=2 * ENCODER_WIDTH,
            pos_embed_max_size=24,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        )
    )
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    shutil.rmtree(folder / "transformer")
    transformer.save_pretrained(folder / "transformer")
    original = original_names.sd3_transformer(transformer.state_dict())
    file = tmp_path / "mine.safetensors"
    inside = {f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}
    save_file(inside | own_encoder(folder), file)

    of_folder = await pixels(ModelChoice(model=str(folder)))
    of_file = await pixels(ModelChoice(model=str(file), base=str(tiny_checkpoint)))
    assert of_folder.std() > 1
    assert np.array_equal(of_file, of_folder)


async def test_gguf_files_give_the_picture_of_a_folder_that_was_rounded_alike(tmp_path: Path) -> None:
    folder, kind = tmp_path / "base", GGMLQuantizationType.Q8_0
    z_image_pipeline().save_pretrained(folder)
    transformer = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    encoder = folder / "text_encoder" / "model.safetensors"
    original = original_names.z_image_transformer(load_file(transformer))
    model = write(quantized(original, kind), tmp_path / "z_image-Q8_0.gguf", "lumina2")
    names = {f"model.{name}": tensor for name, tensor in load_file(encoder).items()}
    llama = llama_names(names, MODEL_ARCH.QWEN3, 3)
    text_encoder = write(quantized(llama, kind), tmp_path / "qwen3-Q8_0.gguf", "qwen3")
    choice = ModelChoice(model=str(model), base=str(folder), weights=[str(text_encoder)])
    found, exact = await pixels(choice), await pixels(ModelChoice(model=str(folder)))
    save_file(dict(open_checkpoint(str(model)).tensors("transformer")), transformer, {"format": "pt"})
    save_file(rounded(load_file(encoder), kind), encoder, {"format": "pt"})
    assert np.array_equal(found, await pixels(ModelChoice(model=str(folder))))
    assert not np.array_equal(found, exact)
