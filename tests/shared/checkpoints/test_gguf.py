"""GGUF files: what gguf's own writer and quantizers write comes back, under the names of diffusers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from safetensors.torch import load_file

from tests.shared.checkpoints import original_names
from tests.shared.checkpoints.gguf_writing import Tensors, llama_names, quantized, rounded, write
from tests.shared.checkpoints.test_single_file import (
    component_file,
    flux_transformer,
    qwen_image21_transformer,
)
from tests.tiny_checkpoint import sd3_pipeline
from tests.tiny_qwen_image import qwen_image_pipeline
from tests.tiny_z_image import z_image_pipeline
from triptych.checkpoints.file_parts import shapes_of
from triptych.checkpoints.formats import gguf_files, read_contents
from triptych.checkpoints.opening import open_checkpoint
from triptych.checkpoints.text_encoder_names import text_config
from triptych.checkpoints.weights import open_weights
from triptych.errors import CheckpointError
from triptych_denoiser.models import load_transformer
from triptych_text_encoder.components import load_text_model

WRITTEN = (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
"""What gguf's own quantizers write in Python; of the others it only reads."""
READ = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS)


def random_blocks(kind: Kind, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Any bytes are a block, if the numbers in half precision among them are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    return generator.integers(0, 0x70, (rows, columns // block * size), np.uint8)


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_was_quantized_comes_back(kind: Kind, tmp_path: Path) -> None:
    matrix = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    file = write(quantized({"a": matrix}, kind), tmp_path / "a.gguf", "flux")
    found = open_weights([file])["a"]
    assert torch.equal(found, rounded({"a": matrix}, kind)["a"])
    assert (found - matrix).abs().max() < 0.5
    assert shapes_of(read_contents([file]).tensors) == {"a": (40, 64)}


@pytest.mark.parametrize("kind", READ)
def test_every_kind_that_gguf_reads_is_read(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files, "_CHUNK_BYTES", 1000)  # a few rows at a time
    blocks = random_blocks(kind, 37, 512)
    file = write({"a": (blocks, kind)}, tmp_path / "a.gguf", "flux")
    expected = dequantize(blocks, kind)
    assert np.isfinite(expected).all()
    assert np.array_equal(open_weights([file])["a"].numpy(), expected)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Kind.F32, torch.float32), (Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16)]
)
def test_what_is_not_quantized_keeps_its_dtype(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(3, 5, 2).to(dtype)
    data = tensor.view(torch.uint8).numpy() if kind is Kind.BF16 else tensor.numpy()
    found = open_weights([write({"a": (data, kind)}, tmp_path / "a.gguf", "flux")])["a"]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_a_tensor_that_was_made_rectangular_has_its_own_shape(tmp_path: Path) -> None:
    tensor = torch.randn(16, 4, 2, 2)
    tensors = quantized({"a": tensor.reshape(4, 64)}, Kind.Q8_0)
    file = write(tensors, tmp_path / "a.gguf", "sd3", a=[16, 4, 2, 2])
    assert shapes_of(read_contents([file]).tensors) == {"a": (16, 4, 2, 2)}
    found = open_weights([file])["a"]
    assert torch.equal(found.reshape(4, 64), rounded({"a": tensor.reshape(4, 64)}, Kind.Q8_0)["a"])
    wrong = write(tensors, tmp_path / "b.gguf", "sd3", a=[16, 4, 2])
    with pytest.raises(CheckpointError, match=r"a of shape \[4, 64\] is said to be \[16, 4, 2\]"):
        open_weights([wrong])


def transformer_of(family: str) -> tuple[Any, Tensors]:
    if family == "flux":
        model = flux_transformer(True)
        return model, original_names.flux_transformer(model.state_dict())
    if family == "sd3":
        model = sd3_pipeline(
            caption_projection_dim=64, attention_head_dim=64, num_attention_heads=1
        ).transformer
        return model, original_names.sd3_transformer(model.state_dict())
    if family == "qwen_image":
        model = qwen_image_pipeline(attention_head_dim=32, axes_dims_rope=(4, 14, 14)).transformer
        return model, dict(model.state_dict())
    if family == "qwen_image21":
        model = qwen_image21_transformer()
        return model, original_names.qwen_image21_transformer(model.state_dict())
    model = z_image_pipeline().transformer
    return model, original_names.z_image_transformer(model.state_dict())


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0])
@pytest.mark.parametrize("family", ["flux", "sd3", "qwen_image", "qwen_image21", "lumina2"])
def test_a_transformer_is_read_as_its_rounded_original(family: str, kind: Kind, tmp_path: Path) -> None:
    model, original = transformer_of(family)
    file = write(quantized(original, kind), tmp_path / "model.gguf", family)
    checkpoint = open_checkpoint(str(file))
    assert checkpoint.class_name("transformer") == type(model).__name__
    found = checkpoint.tensors("transformer")
    expected = rounded(original, kind)
    assert original_names.TRANSFORMERS[type(model).__name__](dict(found)).keys() == expected.keys()
    for name, tensor in original_names.TRANSFORMERS[type(model).__name__](dict(found)).items():
        assert torch.equal(tensor, expected[name]), name
    assert load_transformer(checkpoint, "cpu", torch.float32)


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd3": partial(sd3_pipeline, t5=True),
    "z_image": z_image_pipeline,
    "qwen_image": qwen_image_pipeline,
}


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
@pytest.mark.parametrize(
    ("pipeline", "component", "architecture", "layers"),
    [
        ("sd3", "text_encoder_3", gguf.MODEL_ARCH.T5ENCODER, "num_layers"),
        ("z_image", "text_encoder", gguf.MODEL_ARCH.QWEN3, "num_hidden_layers"),
        ("qwen_image", "text_encoder", gguf.MODEL_ARCH.QWEN2VL, "num_hidden_layers"),
    ],
)
def test_a_text_encoder_of_llama_cpp_takes_the_place_of_the_models_own(
    pipeline: str,
    component: str,
    architecture: gguf.MODEL_ARCH,
    layers: str,
    kind: Kind,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "base"
    PIPELINES[pipeline]().save_pretrained(folder)
    base = open_checkpoint(str(folder))
    tensors = load_file(component_file(folder, component))
    if pipeline == "z_image":
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    if pipeline == "qwen_image":  # whose eyes are in a file of their own
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("visual.")}
    stored = llama_names(tensors, architecture, text_config(base.config(component))[layers])
    assert "token_embd.weight" in stored
    file = write(quantized(stored, kind), tmp_path / "encoder.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    checkpoint = open_checkpoint(str(folder), weights=[str(file)])
    found = checkpoint.tensors(component)
    expected = rounded(tensors, kind)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    ours = load_text_model(checkpoint, component, torch.float32, torch.device("cpu")).state_dict()
    theirs = load_text_model(base, component, torch.float32, torch.device("cpu")).state_dict()
    for name, weight in ours.items():
        assert (weight - theirs[name]).norm() <= 0.02 * theirs[name].norm(), name


def test_a_broken_file_is_refused_and_a_kind_that_nothing_decodes(tmp_path: Path) -> None:
    file = write(quantized({"a": torch.ones(32, 32)}, Kind.Q8_0), tmp_path / "a.gguf", "flux")
    content = file.read_bytes()
    for length in (5, 30, 70, len(content) - 100):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"a\.gguf is a GGUF file, but truncated or broken"):
            open_weights([file])
    file = write({"a": (np.zeros((2, 64), np.int8), Kind.I8)}, tmp_path / "b.gguf", "flux")
    with pytest.raises(CheckpointError, match=r"b\.gguf: a is quantized as I8, which gguf cannot decode"):
        open_weights([file])


def test_a_spoiled_byte_is_refused_or_read_and_nothing_else(tmp_path: Path) -> None:
    tensors = quantized({"a": torch.ones(4, 64), "b": torch.ones(3)}, Kind.Q4_0)
    file = write(tensors, tmp_path / "a.gguf", "flux", a=[8, 32])
    whole, generator, refused = file.read_bytes(), np.random.default_rng(0), []
    for position in range(4, len(whole)):
        spoiled = bytearray(whole)
        spoiled[position] = int(generator.choice([0, 1, 2, 7, 32, 64, 128, 255]))
        file.write_bytes(spoiled)
        try:
            assert all(tensor.is_floating_point() for tensor in open_weights([file]).values())
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(str(file) in said and "\n" not in said for said in refused)
