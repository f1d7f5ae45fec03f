"""FLUX.2 dev's text recipe gives what diffusers' encode_prompt gives, for a folder that diffusers saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.text import PROMPTS, assert_close, load
from tests.tiny_flux2_dev import WIDTH, flux2_dev_pipeline, save
from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import CheckpointError
from triptych_text_encoder.recipes import load_recipe

LONG = "a red cat " * 80  # more than 512 tokens of a byte each


@torch.no_grad()
def encode(reference: Any, prompts: list[str]) -> torch.Tensor:
    sequences, _ = reference.encode_prompt(list(prompts), device="cpu")
    assert isinstance(sequences, torch.Tensor)
    return sequences


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_conditioning_is_what_diffusers_makes_of_the_same_prompts(padding_side: str, tmp_path: Path) -> None:
    reference, prompts = flux2_dev_pipeline(), [*PROMPTS, LONG, "a picture [IMG] of it[IMG]"]
    reference.tokenizer.tokenizer.padding_side = padding_side
    save(reference, tmp_path)

    recipe = load(tmp_path)

    assert recipe.joint_attention_dim == 3 * WIDTH
    for prompt, theirs in zip(prompts, encode(reference, prompts), strict=True):
        ours = recipe.encode(prompt)
        assert ours.sequence.shape == (512, 3 * WIDTH)
        assert ours.pooled.shape == (recipe.pooled_projection_dim,) == (0,)
        assert_close(ours.sequence, theirs)


def test_a_template_without_the_mark_of_a_text_gets_it(tmp_path: Path) -> None:
    reference = flux2_dev_pipeline()
    tokenizer = reference.tokenizer.tokenizer
    tokenizer.chat_template = tokenizer.chat_template.replace("{{- bos_token -}}", "")
    save(reference, tmp_path)

    assert_close(load(tmp_path).encode("a cat").sequence, encode(reference, ["a cat"])[0])


def test_layers_behind_the_states_and_eyes_are_left_out(tmp_path: Path) -> None:
    reference = flux2_dev_pipeline(layers=33)
    save(reference, tmp_path)

    (mistral,) = load(tmp_path).towers

    assert len(mistral.model.layers) == 30
    assert not any("vision" in name for name, _ in mistral.model.named_parameters())


def test_30_layers_are_enough_and_fewer_are_not(tmp_path: Path) -> None:
    save(flux2_dev_pipeline(layers=30), tmp_path / "30")
    assert load(tmp_path / "30").encode("a cat").sequence.isfinite().all()

    save(flux2_dev_pipeline(layers=29), tmp_path / "29")
    with pytest.raises(CheckpointError, match="has 29 layers; the states behind 10, 20, 30 are needed"):
        load(tmp_path / "29")


def test_a_node_editors_file_with_30_layers_and_a_tokenizer_takes_the_encoders_place(tmp_path: Path) -> None:
    """Their file of the encoder has the layers that are used, and its tokenizer as numbers."""
    save(flux2_dev_pipeline(), tmp_path / "base")
    tensors = load_file(tmp_path / "base/text_encoder/model.safetensors")
    layered = {name.replace("language_model.model.", "model."): each for name, each in tensors.items()}
    layered = {name.replace("model.language_model.", "model."): each for name, each in layered.items()}
    kept = {name: each + 0 for name, each in layered.items() if ".layers.30." not in name}
    kept["model.embed_tokens.weight"] *= 2
    save_file(kept | {"tekken_model": torch.zeros(9, dtype=torch.uint8)}, tmp_path / "mistral.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "base"), weights=[str(tmp_path / "mistral.safetensors")])

    other = load_recipe(checkpoint, torch.float32, torch.device("cpu")).encode("a cat").sequence

    assert not torch.equal(other, load(tmp_path / "base").encode("a cat").sequence)


def test_the_end_of_a_long_prompt_is_not_read(tmp_path: Path) -> None:
    save(flux2_dev_pipeline(), tmp_path)

    encoding = load(tmp_path).encode(LONG + "and a dog")

    assert encoding.truncated.endswith("and a dog")
    assert len(LONG) - 512 < len(encoding.truncated) < len(LONG)


def test_a_tokenizer_of_another_class_is_refused(tmp_path: Path) -> None:
    save(flux2_dev_pipeline(), tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "GemmaTokenizer"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"tokenizer of .* is a GemmaTokenizer; supported are"):
        load(tmp_path)
