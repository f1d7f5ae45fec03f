"""The transformer's training: what it writes, and that a run goes on where it was cut off."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from training.run_folder import RunFolder
from training.token_naming import KINDS
from training.transformer import CONFIG, Recipe, Training, schedule


def batch(seed: int) -> tuple[torch.Tensor, ...]:
    """Random latents, labels, sequence and pooled for two rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return (
        normal(2, 16, 4, 4),
        torch.stack([torch.randint(count, (2, 4), generator=generator) for count in KINDS], dim=1),
        normal(2, 3, CONFIG.joint_attention_dim),
        normal(2, CONFIG.pooled_projection_dim),
    )


def test_the_learning_rate_rises_stays_and_falls() -> None:
    factors = [schedule(step, decay_from=800, total=1000) for step in range(1000)]
    assert factors[0] < 0.01
    assert factors[199] == factors[799] == 1.0
    assert factors[900] == pytest.approx(0.5)
    assert factors[999] < 0.01


def test_a_run_that_was_cut_off_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    recipe, device = Recipe(batch=2, learning_rate=1e-3), torch.device("cpu")
    first = Training(recipe, RunFolder(tmp_path / "run"), device, seed=0)
    for step in range(2):
        first.update(*batch(step), factor=1.0)
    first.save(tmp_path / "model")
    again = Training(recipe, RunFolder(tmp_path / "run"), device, seed=0)
    assert again.step == 2
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(first.model.named_parameters())[name]), name
    for name, value in first.ema.items():
        assert torch.equal(again.ema[name], value), name

    again.update(*batch(2), factor=0.0)
    for name, value in first.optimizer.masters.items():
        assert torch.equal(again.optimizer.masters[name], value), f"{name} moved at no learning rate"

    theirs = SD3Transformer2DModel.from_pretrained(tmp_path / "model" / "transformer")
    width = CONFIG.width
    assert theirs.proj_out.weight.shape == (64, width)
    assert torch.equal(theirs.context_embedder.weight, first.ema["text_embed.weight"].bfloat16().float())
    neighbours = theirs.pos_embed.pos_embed.reshape(48, 48, width)[24, 24:26]
    assert not torch.allclose(neighbours[0], neighbours[1], atol=0.1)


def test_a_new_run_can_start_from_written_weights(tmp_path: Path) -> None:
    recipe, device = Recipe(batch=2, learning_rate=1e-3), torch.device("cpu")
    first = Training(recipe, RunFolder(tmp_path / "first"), device, seed=0)
    first.update(*batch(0), factor=1.0)
    first.save(tmp_path / "model")
    second = Training(recipe, RunFolder(tmp_path / "second"), device, 1, tmp_path / "model" / "transformer")
    assert second.step == 0
    for name, value in second.optimizer.masters.items():
        assert torch.equal(value, first.ema[name].bfloat16().float()), name
