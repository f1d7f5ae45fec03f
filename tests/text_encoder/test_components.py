"""Which checkpoint folders are loaded, and what is said about the others."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.text_encoder.small_text_encoders import CLIP_MERGES, clip_vocabulary
from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import CheckpointError
from triptych_text_encoder.components import load_text_model
from triptych_text_encoder.recipes import Recipe, load_recipe

Load = Callable[[Path], Recipe]


@pytest.fixture
def folder(with_t5: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint with a T5, to be changed."""
    return Path(shutil.copytree(with_t5, tmp_path / "changed"))


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rename_weights(file: Path, rename: Callable[[str], str]) -> None:
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)


def assert_same_encoding(ours: Recipe, theirs: Recipe) -> None:
    a, b = ours.encode("a red cat"), theirs.encode("a red cat")
    assert torch.equal(a.sequence, b.sequence)
    assert torch.equal(a.pooled, b.pooled)


def test_clip_weights_may_lack_their_prefix(folder: Path, load: Load, recipe_with_t5: Recipe) -> None:
    rename_weights(folder / "text_encoder/model.safetensors", lambda name: name.removeprefix("text_model."))

    assert_same_encoding(load(folder), recipe_with_t5)


@pytest.mark.parametrize(
    "names", [{"encoder.embed_tokens.weight"}, {"shared.weight", "encoder.embed_tokens.weight"}]
)
def test_the_t5_embedding_may_have_any_of_its_names(
    names: set[str], folder: Path, load: Load, recipe_with_t5: Recipe
) -> None:
    file = folder / "text_encoder_3/model.safetensors"
    weights = load_file(file)
    embedding = weights.pop("shared.weight")
    save_file(weights | {name: embedding.clone() for name in names}, file)

    assert_same_encoding(load(folder), recipe_with_t5)


def test_a_clip_tokenizer_may_be_a_vocabulary_and_merges(
    folder: Path, load: Load, recipe_with_t5: Recipe
) -> None:
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (folder / tokenizer / "tokenizer.json").unlink()
        (folder / tokenizer / "vocab.json").write_text(json.dumps(clip_vocabulary()))
        merges = ["#version: 0.2", *(f"{left} {right}" for left, right in CLIP_MERGES)]
        (folder / tokenizer / "merges.txt").write_text("\n".join(merges))

    assert_same_encoding(load(folder), recipe_with_t5)


def test_wo_of_t5_stays_float32_in_float16(with_t5: Path) -> None:
    model = load_text_model(
        open_checkpoint(str(with_t5)), "text_encoder_3", torch.float16, torch.device("cpu")
    )

    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "wo" in name.split(".")} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "wo" not in name.split(".")} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same(
    dtype: torch.dtype, with_t5: Path, recipe_with_t5: Recipe
) -> None:
    half = load_recipe(open_checkpoint(str(with_t5)), dtype, torch.device("cpu")).encode("a red cat")
    full = recipe_with_t5.encode("a red cat")

    assert half.sequence.dtype == half.pooled.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.sequence.float(), full.sequence).min() > 0.99
    assert torch.nn.functional.cosine_similarity(half.pooled.float(), full.pooled, dim=0) > 0.99


def test_loading_opens_no_connection(with_t5: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    load(with_t5)


@pytest.mark.parametrize("encoder", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_scales_of_float8_weights_are_applied(encoder: str, folder: Path, load: Load) -> None:
    """As node editors save text encoders: float8 with a scale beside each matrix."""
    file = folder / encoder / "model.safetensors"
    exact = load_file(file)
    stored: dict[str, torch.Tensor] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in exact.items():
        stored[name] = tensor
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[f"{name.removesuffix('.weight')}.scale_weight"] = scale
            exact[name] = stored[name].float() * scale
    save_file(exact, file)
    expected = load(folder)
    save_file(stored, file)
    assert_same_encoding(load(folder), expected)


@pytest.mark.parametrize(
    "extra",
    [
        "logit_scale",
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "visual_projection.weight",
        "decoder.block.0.layer.0.layer_norm.weight",
        "lm_head.weight",
    ],
)
def test_harmless_extras_are_left_alone(extra: str, folder: Path, load: Load, recipe_with_t5: Recipe) -> None:
    file = folder / "text_encoder/model.safetensors"
    save_file(load_file(file) | {extra: torch.arange(3)}, file)
    assert_same_encoding(load(folder), recipe_with_t5)


@pytest.mark.parametrize(
    ("encoder", "key", "value", "named"),
    [
        ("text_encoder", "num_hidden_layers", 1, r"has 32 weights .*text_model\.encoder\.layers\.1\."),
        ("text_encoder_3", "num_layers", 1, r"encoder\.block\.1\."),
    ],
)
def test_a_config_that_names_fewer_layers_than_the_file_has_is_refused(
    encoder: str, key: str, value: int, named: str, folder: Path, load: Load
) -> None:
    config = json.loads((folder / encoder / "config.json").read_text())
    assert config[key] > value
    change_json(folder / encoder / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=named):
        load(folder)


def test_integer_weights_without_scales_are_refused(folder: Path, load: Load) -> None:
    file = folder / "text_encoder_3/model.safetensors"
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    weights = load_file(file)
    save_file(weights | {name: weights[name].to(torch.int8)}, file)
    with pytest.raises(CheckpointError, match=rf"{name} holds integers \(I8\)"):
        load(folder)


def unsupported_family(folder: Path) -> None:
    change_json(folder / "model_index.json", _class_name="PixArtSigmaPipeline")


def unsupported_encoder(folder: Path) -> None:
    change_json(folder / "model_index.json", text_encoder=["transformers", "BertModel"])


def unsupported_tokenizer(folder: Path) -> None:
    change_json(folder / "model_index.json", tokenizer_2=["transformers", "BertTokenizer"])


def no_encoder(folder: Path) -> None:
    change_json(folder / "model_index.json", text_encoder=[None, None])


def no_tokenizer_files(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_3/tokenizer.json").write_text('{"model": 3}')


def truncated_weights(folder: Path) -> None:
    file = folder / "text_encoder_2/model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def lacking_weights(folder: Path) -> None:
    change_json(folder / "text_encoder/config.json", num_hidden_layers=4)


def weights_of_other_shape(folder: Path) -> None:
    change_json(folder / "text_encoder_3/config.json", d_ff=64)


def senseless_config(folder: Path) -> None:
    change_json(folder / "text_encoder/config.json", hidden_size="wide")


def few_positions(folder: Path) -> None:
    change_json(folder / "tokenizer/tokenizer_config.json", model_max_length=33)


def no_joint_attention_dim(folder: Path) -> None:
    change_json(folder / "model_index.json", text_encoder_3=[None, None])
    (folder / "transformer/config.json").write_text("{}")


def narrow_joint_attention_dim(folder: Path) -> None:
    change_json(folder / "model_index.json", text_encoder_3=[None, None])
    change_json(folder / "transformer/config.json", joint_attention_dim=39)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            unsupported_family,
            "is a PixArtSigmaPipeline; there are text recipes for StableDiffusion3Pipeline, FluxPipeline",
        ),
        (unsupported_encoder, "text_encoder of .* is a BertModel; supported are CLIPTextModel, "),
        (unsupported_tokenizer, "tokenizer_2 of .* is a BertTokenizer; supported are CLIPTokenizer"),
        (no_encoder, "names no component 'text_encoder'"),
        (no_tokenizer_files, "tokenizer has none of vocab.json, merges.txt, tokenizer.json"),
        (broken_tokenizer, "tokenizer_3 cannot be loaded"),
        (truncated_weights, "model.safetensors is truncated"),
        (lacking_weights, "text_encoder lacks .* the first is text_model.encoder.layers.3"),
        (weights_of_other_shape, "text_encoder_3 cannot be loaded: .*DenseReluDense.* has shape"),
        (senseless_config, "text_encoder cannot be loaded"),
        (few_positions, "tokenizer 1 of .* gives 33 tokens, its encoder has 32 positions"),
        (no_joint_attention_dim, "has no joint_attention_dim"),
        (narrow_joint_attention_dim, "give 40 features, joint_attention_dim is 39"),
    ],
)
def test_a_checkpoint_that_cannot_work_is_refused_in_a_sentence(
    change: Callable[[Path], None], sentence: str, folder: Path, load: Load
) -> None:
    change(folder)

    with pytest.raises(CheckpointError, match=sentence):
        load(folder)
