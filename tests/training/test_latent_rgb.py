"""The fit of the map from latents to colours, and the file that it goes to."""

import json
import re
from pathlib import Path

import torch

from training.folder import DEFAULTS, write_index, write_latent_rgb
from training.latent_rgb import colours, fit
from training.strangers import STRANGERS
from triptych.checkpoints.opening import open_checkpoint
from triptych_coordinator.vocabulary import Vocabulary, vocabulary_of

README = Path(__file__).parents[2] / "README.md"


def test_a_linear_map_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 4, 6, generator=generator)
    factors, bias = 0.1 * torch.randn(5, 3, generator=generator), torch.tensor([0.1, 0.0, -0.2])
    rgb = latents.permute(0, 2, 3, 1) @ factors + bias
    pixels = ((rgb + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.allclose(colours(pixels, 4), rgb, atol=0.005)
    found_factors, found_bias = fit(latents, pixels)
    assert torch.allclose(found_factors.float(), factors, atol=0.005)
    assert torch.allclose(found_bias.float(), bias, atol=0.005)


def test_the_map_stays_when_the_folder_is_written_again(tmp_path: Path) -> None:
    write_index(tmp_path)
    write_latent_rgb(tmp_path, [[0.12345, 0, 1]], [0, 0, 0.5], 3)
    write_index(tmp_path)
    settings = json.loads((tmp_path / "triptych.json").read_text())
    assert settings == {**DEFAULTS, "latent_rgb": {"factors": [[0.123, 0, 1]], "bias": [0, 0, 0.5]}}


def test_a_model_s_folder_says_which_words_it_knows(tmp_path: Path) -> None:
    write_index(tmp_path)
    settings = json.loads((tmp_path / "triptych.json").read_text())
    known = set(settings["vocabulary"])
    assert {"zebra", "zebras", "fire truck", "sofa", "forest"} <= known
    assert not known & set(STRANGERS)
    for prompt in settings["example_prompts"]:
        assert any(word in prompt for word in known), prompt


def test_the_model_inside_knows_the_recipe_s_words() -> None:
    known = Vocabulary(tuple(DEFAULTS["vocabulary"]), tuple(DEFAULTS["example_prompts"]))
    assert vocabulary_of(open_checkpoint("triptych-small")) == known


def test_the_readme_asks_for_what_the_model_inside_draws() -> None:
    prompts = re.findall(
        r'(?:PROMPT=|generate |grid |generate\(|prompts: \[|prompt=)"([^"]+)"', README.read_text()
    )
    assert len(prompts) > 6
    assert vocabulary_of(open_checkpoint("triptych-small")).warnings(prompts) == []
