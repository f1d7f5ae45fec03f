"""The VAE's training: that a run goes on where it was cut off, and that diffusers reads what it writes."""

from pathlib import Path
from typing import Any

import diffusers
import torch

from training.decoder import CONFIG, Run, export, loss_of
from training.linear_codec import LinearCodec
from training.run_folder import RunFolder
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL

CODEC = LinearCodec.load()


def update(run: Run) -> float:
    """One step on pixels that depend on the step alone; returns the loss."""
    generator = torch.Generator().manual_seed(run.step)
    pixels = torch.randint(0, 256, (1, 3, 2, 3), generator=generator, dtype=torch.uint8)
    pixels = pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.manual_seed(run.step)
    loss = loss_of(run.decoder, CODEC.encode_unscaled(pixels), pixels)
    run.update(loss, steps=100)
    return float(loss.detach())


def test_a_run_that_was_cut_off_goes_on_with_the_same_steps(tmp_path: Path) -> None:
    first = Run(RunFolder(tmp_path), learning_rate=1e-3)
    update(first)
    update(first)
    first.save()
    again = Run(RunFolder(tmp_path), learning_rate=1e-3)

    assert update(first) == update(again)
    assert again.step == 3
    for name, weight in again.decoder.named_parameters():
        assert torch.equal(weight, dict(first.decoder.named_parameters())[name]), name
    for name, weight in again.average.named_parameters():
        assert torch.equal(weight, dict(first.average.named_parameters())[name]), name


def test_every_convolution_learns(tmp_path: Path) -> None:
    run = Run(RunFolder(tmp_path), learning_rate=1e-3)
    before = {name: weight.detach().clone() for name, weight in run.decoder.named_parameters()}
    update(run)
    update(run)

    for name, weight in run.decoder.named_parameters():
        if weight.ndim == 4:
            assert not torch.equal(weight, before[name]), name


def test_diffusers_reads_what_is_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(CONFIG).half().float().requires_grad_(False).eval()
    export(model, CODEC, tmp_path)

    theirs: Any = diffusers.AutoencoderKL.from_pretrained(tmp_path)

    assert theirs.config.scaling_factor == CODEC.scaling_factor
    assert theirs.config.shift_factor == CODEC.shift_factor
    latents = torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(latents), theirs.decode(latents).sample)
