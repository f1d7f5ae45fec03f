"""What Z-Image's recipe makes of a prompt, and which folders it loads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.tiny_z_image import WIDTH, z_image_pipeline
from triptych.errors import CheckpointError
from triptych_text_encoder.recipes import Recipe

Load = Callable[[Path], Recipe]
MARKS = len("user\nassistant\n\n") + 3  # bytes of the chat around the prompt, and its special tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    z_image_pipeline().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, load: Load) -> Recipe:
    folder = tmp_path_factory.mktemp("z-image")
    z_image_pipeline().save_pretrained(folder)
    return load(folder)


def test_the_sequence_has_the_tokens_of_the_chat_and_there_is_no_pooled_vector(recipe: Recipe) -> None:
    encoding = recipe.encode("a red cat")

    assert encoding.sequence.shape == (MARKS + len("a red cat"), WIDTH)
    assert encoding.pooled.shape == (0,)
    assert recipe.token_weights is None


@pytest.mark.parametrize("start", ["user ", "", "<|im_start|>user\n"])
def test_truncated_begins_where_the_chat_is_cut_off(start: str, recipe: Recipe) -> None:
    words = " ".join(["cat"] * 300)
    encoding = recipe.encode(start + words)

    assert encoding.sequence.shape == (512, WIDTH)
    assert words.endswith(encoding.truncated)
    kept = (start + words).removesuffix(encoding.truncated)
    opening = len("user\n") + 1
    assert len(kept.replace("<|im_start|>", "!")) + opening in (511, 512)


def test_any_text_is_a_prompt(recipe: Recipe) -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=60) | st.text("\0\u200d\ufeff\u0301 a{%}<|>/\U0001f993", max_size=400))
    def encode(prompt: str) -> None:
        encoding = recipe.encode(prompt)
        assert encoding.sequence.isfinite().all()
        assert prompt.strip().endswith(encoding.truncated)

    encode()


@pytest.mark.parametrize("class_name", ["Qwen3Model", "Qwen3ForCausalLM"])
def test_the_weights_may_be_those_of_the_whole_language_model(
    class_name: str, folder: Path, recipe: Recipe, load: Load
) -> None:
    file = folder / "text_encoder/model.safetensors"
    weights = load_file(file)
    head = {"lm_head.weight": weights["embed_tokens.weight"].clone()}
    save_file({f"model.{name}": weight for name, weight in weights.items()} | head, file)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"text_encoder": ["transformers", class_name]})
    )

    assert torch.equal(load(folder).encode("a cat").sequence, recipe.encode("a cat").sequence)


@pytest.mark.parametrize("template", [None, "{{ 1 / 0 }}", "{% if %}", "a prompt that is not there"])
def test_a_chat_template_that_cannot_work_is_refused(template: str | None, folder: Path, load: Load) -> None:
    file = folder / "tokenizer/chat_template.jinja"
    if template is None:
        file.unlink()
    else:
        file.write_text(template)

    with pytest.raises(CheckpointError, match=r"chat template in .*tokenizer cannot be used"):
        load(folder)
