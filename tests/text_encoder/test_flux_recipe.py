"""What FLUX.1's recipe makes of a prompt, and which folders it loads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_flux import POOLED, WIDTH, flux_pipeline
from triptych_text_encoder.recipes import Recipe
from triptych_text_encoder.weighting import Span

Load = Callable[[Path], Recipe]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("flux")
    for name in ("dev", "schnell"):
        flux_pipeline(guidance=name == "dev").save_pretrained(folder / name)
    return {name: folder / name for name in ("dev", "schnell")}


@pytest.mark.parametrize(("name", "tokens"), [("dev", 512), ("schnell", 256)])
def test_t5_stops_where_the_model_was_trained(
    name: str, tokens: int, folders: dict[str, Path], load: Load
) -> None:
    recipe = load(folders[name])
    prompt = " ".join(["cat"] * (tokens - 1))  # the end mark takes one token

    whole, cut = recipe.encode(prompt), recipe.encode(f"{prompt} red red")

    assert whole.sequence.shape == (recipe.tokens, WIDTH) == (tokens, WIDTH)
    assert whole.pooled.shape == (recipe.pooled_projection_dim,) == (POOLED,)
    assert (whole.truncated, cut.truncated) == ("", "red red")
    assert torch.equal(whole.sequence, cut.sequence)


def test_weights_of_a_prompt_are_those_of_t5_tokens(folders: dict[str, Path], load: Load) -> None:
    recipe = load(folders["dev"])
    assert recipe.token_weights is not None

    weights = recipe.token_weights("a red cat", [Span(2, 5, 1.3)])

    assert len(weights) == recipe.tokens
    assert set(weights) == {1.0, 1.3}


def test_clip_weights_may_have_the_prefix_that_older_checkpoints_have(
    folders: dict[str, Path], load: Load
) -> None:
    before = load(folders["dev"]).encode("a red cat")
    file = folders["dev"] / "text_encoder/model.safetensors"
    weights = load_file(file)
    save_file({f"text_model.{name.removeprefix('text_model.')}": weights[name] for name in weights}, file)

    assert torch.equal(load(folders["dev"]).encode("a red cat").pooled, before.pooled)
