"""Weights in every form are what was stored, and what cannot be read is refused by its name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from triptych.compute.quantization import torchao_quietly

with torchao_quietly():
    from torchao import quantization as ao
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

from tests.shared.checkpoints.four_bits import Tensors, as_bytes, nf4
from triptych.checkpoints.file_parts import shapes_of
from triptych.checkpoints.formats import read_contents
from triptych.checkpoints.weights import open_weights
from triptych.errors import CheckpointError

LINEAR = "model.diffusion_model.double_blocks.0.img_attn.qkv"
FP8 = torch.float8_e4m3fn


def weight(rows: int = 6, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def write(tensors: Tensors, folder: Path, metadata: dict[str, str] | None = None) -> Path:
    file = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
    return file


def scaled(tensor: Tensor, dtype: torch.dtype, per_row: bool = False) -> tuple[Tensor, Tensor]:
    largest = 127 if dtype is torch.int8 else torch.finfo(dtype).max
    most = tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().max()
    scale = most / largest
    quotient = tensor / scale
    return (quotient.round() if dtype is torch.int8 else quotient).to(dtype), scale


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("kinds", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
def test_scales_are_applied(
    kinds: tuple[str, str], per_row: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    quantized, scale = scaled(weight(), dtype, per_row)
    stored = {
        f"{LINEAR}.weight": quantized,
        f"{LINEAR}.{kinds[0]}": scale,
        f"{LINEAR}.{kinds[1]}": torch.tensor(3.0),
        f"{LINEAR}.bias": torch.ones(6),
        "model.diffusion_model.scaled_fp8": torch.empty(0, dtype=FP8),
    }
    found = open_weights([write(stored, tmp_path)])
    assert set(found) == {f"{LINEAR}.weight", f"{LINEAR}.bias"}
    assert torch.equal(found[f"{LINEAR}.weight"], quantized.float() * scale)
    assert torch.equal(found[f"{LINEAR}.bias"], torch.ones(6))


def test_a_scale_per_row_may_have_one_dimension_and_weights_four(tmp_path: Path) -> None:
    kernel = torch.ones(3, 2, 1, 1, dtype=torch.int8)
    scale = torch.tensor([1.0, 2.0, 4.0])
    found = open_weights([write({"a.weight": kernel, "a.weight_scale": scale}, tmp_path)])
    assert found["a.weight"][:, 0, 0, 0].tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("said", ["beside", "metadata"])
def test_the_form_that_a_node_editor_says_is_taken(said: str, tmp_path: Path) -> None:
    quantized, scale = scaled(weight(), FP8)
    form = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    stored = {"a.weight": quantized, "a.weight_scale": scale}
    if said == "beside":
        file = write(stored | {"a.comfy_quant": as_bytes(form)}, tmp_path)
    else:
        layers = json.dumps({"format_version": "1.0", "layers": {"a": form}})
        file = write(stored, tmp_path, {"_quantization_metadata": layers})
    assert torch.equal(open_weights([file])["a.weight"], quantized.float() * scale)
    assert shapes_of(read_contents([file]).tensors) == {"a.weight": (6, 64)}


@pytest.mark.parametrize("group", [4, 16, 64])
def test_rotated_weights_are_rotated_back(group: int, tmp_path: Path) -> None:
    """W H^T is stored: H is orthogonal, its rows of 4 have one sign that is not the others'."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = four
    for _ in range({4: 0, 16: 1, 64: 2}[group]):
        matrix = torch.kron(matrix, four)
    rotated = (weight().reshape(6, -1, group) @ (matrix.T / group**0.5)).reshape(6, 64)
    quantized, scale = scaled(rotated, torch.int8, per_row=True)
    form = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    stored = {"a.weight": quantized, "a.weight_scale": scale, "a.comfy_quant": as_bytes(form)}
    found = open_weights([write(stored, tmp_path)])["a.weight"]
    assert (found - weight()).norm() < 0.01 * weight().norm()


@pytest.mark.parametrize("group", [3, 128, "256", 256])
def test_a_rotation_that_cannot_have_been_is_refused(group: object, tmp_path: Path) -> None:
    form = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    stored = {"a.weight": torch.ones(6, 64, dtype=torch.int8), "a.weight_scale": torch.ones(6, 1)}
    with pytest.raises(CheckpointError, match="rotated"):
        open_weights([write(stored | {"a.comfy_quant": as_bytes(form)}, tmp_path)])


@pytest.mark.parametrize(
    "form",
    [
        {"format": "nvfp4"},
        {"format": "mxfp8"},
        {"format": "int8_tensorwise", "rotated_by_something": True},
        {},
        [],
        {"format": ["float8_e4m3fn"]},
    ],
)
def test_another_form_of_a_node_editor_is_refused_by_name(form: Any, tmp_path: Path) -> None:
    stored = {
        "a.weight": torch.ones(2, 2, dtype=torch.int8),
        "a.weight_scale": torch.ones(()),
        "a.comfy_quant": as_bytes(form),
    }
    with pytest.raises(
        CheckpointError, match=r"weights\.safetensors: a is quantized as .*not read"
    ) as caught:
        open_weights([write(stored, tmp_path)])
    assert json.dumps(form) in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 2), (1, 4), (3,)])
def test_scales_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    stored = {"a.weight": torch.ones(4, 4, dtype=torch.int8), "a.weight_scale": torch.ones(shape)}
    with pytest.raises(CheckpointError, match=r"a\.weight of shape \[4, 4\] has scales of shape"):
        open_weights([write(stored, tmp_path)])


def test_integers_without_scales_are_refused_when_they_are_asked_for(tmp_path: Path) -> None:
    stored = {"position_ids": torch.arange(4), "a.weight": torch.ones(2, 2, dtype=torch.int8)}
    found = open_weights([write(stored, tmp_path)])
    with pytest.raises(CheckpointError, match=r"a\.weight holds integers \(I8\), and nothing says by which"):
        found["a.weight"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("blocks.0.qkv.wscales", "SVDQuant"),
        ("blocks.0.qkv.smooth_factor", "SVDQuant"),
        ("blocks.0.qkv.qzeros", "GPTQ or AWQ"),
        ("blocks.0.qkv.weight_packed", "compressed-tensors"),
        ("blocks.0.qkv.weight_scale_2", "NVFP4"),
        ("blocks.0.qkv.weight._data", "quanto"),
    ],
)
def test_other_forms_are_refused_by_name(name: str, form: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors: .*{form}.*{name}"):
        open_weights([write({name: torch.ones(2)}, tmp_path)])


def test_weights_of_4_bits_are_decoded(tmp_path: Path) -> None:
    stored, expected = nf4(weight())
    file = write(stored, tmp_path)
    assert shapes_of(read_contents([file]).tensors) == {"a.weight": (6, 64)}
    assert torch.equal(open_weights([file])["a.weight"], expected)


def test_scales_of_4_bits_may_be_in_8_bits(tmp_path: Path) -> None:
    stored, expected = nf4(weight())
    outer, inner = torch.tensor([2.0, 4.0]), torch.linspace(0, 1, 256)
    state = json.loads(bytes(stored["a.weight.quant_state.bitsandbytes__nf4"].tolist()))
    state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.25}
    codes = torch.tensor([0, 10, 20, 30, 40, 50], dtype=torch.uint8)
    scales = inner[codes.int()] * torch.tensor([2.0, 2, 2, 2, 4, 4]) + 0.25
    expected = (expected.reshape(6, 64) / stored["a.weight.absmax"][:, None]) * scales[:, None]
    stored |= {
        "a.weight.absmax": codes,
        "a.weight.nested_absmax": outer,
        "a.weight.nested_quant_map": inner,
        "a.weight.quant_state.bitsandbytes__nf4": as_bytes(state),
    }
    found = open_weights([write(stored, tmp_path)])
    assert set(found) == {"a.weight"}
    assert torch.allclose(found["a.weight"], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(96, 128), (7, 33)])
def test_4_bits_are_those_of_bitsandbytes(
    shape: tuple[int, int], nested: bool, kind: str, tmp_path: Path
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    quantized, state = functional.quantize_4bit(
        weight(*shape), blocksize=64, compress_statistics=nested, quant_type=kind
    )
    parts = {f"a.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    found = open_weights([write({"a.weight": quantized} | parts, tmp_path)])
    assert torch.allclose(found["a.weight"], functional.dequantize_4bit(quantized, state), rtol=1e-6)


def test_int8_of_bitsandbytes_is_decoded(tmp_path: Path) -> None:
    """The numbers are those of bitsandbytes 0.50: int8_vectorwise_quant and _dequant of the rows."""
    stored = {
        "a.weight": torch.tensor([[127, -64], [32, 127]], dtype=torch.int8),
        "a.SCB": torch.tensor([2.0, 0.5]),
        "a.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    found = open_weights([write(stored, tmp_path)])
    assert set(found) == {"a.weight"}
    expected = torch.tensor([[2.0, -128 / 127], [16 / 127, 0.5]])
    assert torch.allclose(found["a.weight"], expected, rtol=1e-6)


def lose(name: str) -> Callable[[Tensors], object]:
    return lambda stored: stored.pop(f"a.weight.{name}")


def shorten(stored: Tensors) -> None:
    stored["a.weight"] = stored["a.weight"][:-1]


def no_json(stored: Tensors) -> None:
    stored["a.weight.quant_state.bitsandbytes__nf4"] = torch.tensor([1, 2], dtype=torch.uint8)


@pytest.mark.parametrize("spoil", [lose("absmax"), lose("quant_map"), shorten, no_json])
def test_broken_4_bits_are_refused(spoil: Callable[[Tensors], object], tmp_path: Path) -> None:
    stored, _ = nf4(weight())
    spoil(stored)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: "):
        open_weights([write(stored, tmp_path)])


TORCHAO = {
    "int8": ao.Int8WeightOnlyConfig(version=2),
    "int8 dynamic": ao.Int8DynamicActivationInt8WeightConfig(version=2),
    "float8": ao.Float8WeightOnlyConfig(),
    "4 bits in groups": ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32)),
}


@pytest.mark.parametrize("config", TORCHAO.values(), ids=TORCHAO)
def test_weights_of_torchao_are_decoded(config: Any, tmp_path: Path) -> None:
    linear = torch.nn.Linear(64, 6)
    ao.quantize_(linear, config)
    tensors, metadata = flatten_tensor_state_dict(
        {"a.weight": linear.weight.data, "a.bias": linear.bias.data}
    )
    file = write(tensors, tmp_path, metadata)
    assert shapes_of(read_contents([file]).tensors) == {"a.weight": (6, 64), "a.bias": (6,)}
    found = open_weights([file])
    assert torch.allclose(found["a.weight"], linear.weight.dequantize(), rtol=1e-6)
    assert torch.equal(found["a.bias"], linear.bias.data)


def test_other_classes_of_torchao_are_refused_by_name(tmp_path: Path) -> None:
    said = {"_type": "NVFP4Tensor", "_data": {}, "_tensor_data_names": ["qdata", "scale"]}
    metadata = {"a.weight": json.dumps(said), "tensor_names": '["a.weight"]'}
    file = write({"a._weight_qdata": torch.ones(1), "a._weight_scale": torch.ones(1)}, tmp_path, metadata)
    with pytest.raises(CheckpointError, match=r"a\.weight is torchao's NVFP4Tensor, which is not read"):
        open_weights([file])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a pointer of Git LFS"),
        (b"PK\x03\x04" + bytes(60), "is a pickle of torch.save"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page and no weights"),
        (b"<HTML><BODY>429</BODY></HTML>", "is a web page and no weights"),
        (b"\x1f\x8b" + bytes(60), "is compressed by gzip"),
        (b"", "is empty, as if truncated"),
        (b"no weights, only words", "is truncated or no safetensors file"),
    ],
)
def test_what_a_file_is_instead_is_said(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors {says}"):
        open_weights([file])


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first byte of the length is 0x80."""
    tensors = {"a": torch.ones(1)}
    for padding in range(256):
        file = write(tensors, tmp_path, {"padding": "x" * padding})
        if file.read_bytes()[:1] == b"\x80":
            break
    assert file.read_bytes()[:1] == b"\x80"
    assert torch.equal(open_weights([file])["a"], torch.ones(1))


def test_how_much_of_a_truncated_file_is_there_is_said(tmp_path: Path) -> None:
    file = write({"a": torch.ones(100)}, tmp_path)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=f"is truncated: it has {size - 8} of the {size} bytes"):
        open_weights([file])


def forms(folder: Path) -> dict[str, Path]:
    """A small file of each form."""
    quantized, scale = scaled(weight(), torch.int8, per_row=True)
    form = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    linear = torch.nn.Linear(64, 6)
    ao.quantize_(linear, TORCHAO["4 bits in groups"])
    tensors, metadata = flatten_tensor_state_dict({"a.weight": linear.weight.data})
    stored: dict[str, tuple[Tensors, dict[str, str] | None]] = {
        "scaled": (
            {"a.weight": quantized, "a.weight_scale": scale, "a.comfy_quant": as_bytes(form)},
            {"_quantization_metadata": json.dumps({"layers": {"a": form}})},
        ),
        "bitsandbytes": (nf4(weight())[0], None),
        "torchao": (tensors, metadata),
    }
    files = {}
    for name, (its, said) in stored.items():
        (folder / name).mkdir()
        files[name] = write(its, folder / name, said)
    return files


@pytest.mark.parametrize("form", ["scaled", "bitsandbytes", "torchao"])
def test_a_spoiled_byte_is_refused_or_read_and_nothing_else(form: str, tmp_path: Path) -> None:
    file = forms(tmp_path)[form]
    whole, generator = file.read_bytes(), random.Random(0)
    refused = []
    for position in range(8, len(whole), 3):
        spoiled = bytearray(whole)
        spoiled[position] = generator.choice(b'0129-"{}[],:.ae\x00\xff')
        file.write_bytes(spoiled)
        try:
            found = open_weights([file])
            assert all(found[name].is_floating_point() for name in found)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(str(file) in said and "\n" not in said for said in refused)
