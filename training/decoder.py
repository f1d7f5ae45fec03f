"""The VAE's decoder in training: a regression from the linear codec's latents to the pixels."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.linear_codec import LinearCodec
from training.optimizers import MuonAndAdam, cosine, muon
from training.run_folder import RunFolder
from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig, build

CONFIG = AutoencoderKLConfig(
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=8,
    mid_block_add_attention=False,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
SAMPLE_SIZE = 128
LATENT_NOISE = 0.03  # the transformer's latents are not exact
SQUARED_ERROR_WEIGHT = 5.0
WARMUP_STEPS = 100
EMA_DECAY = 0.998


def initialise(decoder: nn.Module) -> None:
    """Residual branches start at zero, all other convolutions keep the variance."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias") or "conv2" in name:
            nn.init.zeros_(parameter)
        elif parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


class Optimizer:
    """Muon for the convolutions between channels, Adam for everything else."""

    def __init__(self, decoder: nn.Module, learning_rate: float) -> None:
        inside = {n: p for n, p in decoder.named_parameters() if p.ndim == 4 and "block" in n}
        self.convolutions = list(inside.values())
        # Muon takes matrices: views of the same memory, [channels out, channels in x 3 x 3].
        self.matrices = [p.detach().flatten(1) for p in self.convolutions]
        rest = [p for n, p in decoder.named_parameters() if n not in inside]
        self.both = MuonAndAdam(
            muon(self.matrices, learning_rate, weight_decay=0.0),
            torch.optim.Adam(rest, learning_rate, betas=(0.9, 0.99)),
        )

    def step(self, factor: float) -> None:
        """One update at `factor` times the learning rate; the gradients are gone afterwards."""
        for matrix, parameter in zip(self.matrices, self.convolutions, strict=True):
            assert parameter.grad is not None
            matrix.grad = parameter.grad.flatten(1)
            parameter.grad = None
        self.both.step(factor)


def as_input(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def as_pixels(decoded: Tensor) -> Tensor:
    """The inverse of `as_input`, rounded and clamped."""
    return (decoded.permute(0, 2, 3, 1) * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def loss_of(decoder: nn.Module, latents: Tensor, pixels: Tensor) -> Tensor:
    """Absolute plus weighted squared error of pixels decoded, in bfloat16, from slightly noisy latents."""
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = decoder(noisy)
    target = as_input(pixels)
    absolute, squared = F.l1_loss(decoded.float(), target), F.mse_loss(decoded.float(), target)
    return absolute + SQUARED_ERROR_WEIGHT * squared


class Run:
    """A decoder in training, with its optimizer, its moving average and the processor seconds it has had."""

    def __init__(self, folder: RunFolder, learning_rate: float, device: str = "cpu") -> None:
        self.folder = folder
        torch.manual_seed(0)
        self.decoder = AutoencoderKL(CONFIG).decoder
        initialise(self.decoder)
        self.decoder = self.decoder.to(device)
        self.average = copy.deepcopy(self.decoder).requires_grad_(False)
        self.optimizer = Optimizer(self.decoder, learning_rate)
        self.step, self.seconds = 0, 0.0
        if (state := folder.load()) is not None:
            self.decoder.load_state_dict(state["decoder"])
            self.average.load_state_dict(state["average"])
            self.optimizer.both.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Replaces the folder's checkpoint."""
        state: dict[str, Any] = {
            "decoder": self.decoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.both.state_dict(),
        }
        self.folder.save(state | {"step": self.step, "seconds": self.seconds})

    def update(self, loss: Tensor, steps: int) -> None:
        """One step, of `steps` in all, down the gradient."""
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step(cosine(self.step, steps, WARMUP_STEPS))
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, parameter in zip(self.average.parameters(), self.decoder.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        self.step += 1

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        """Takes over the decoder of a VAE's folder."""
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
        decoder = build(config, tensors, "cpu", torch.float32).decoder
        for mine in (self.decoder, self.average):
            for parameter, theirs in zip(mine.parameters(), decoder.parameters(), strict=True):
                parameter.copy_(theirs)


def export(model: AutoencoderKL, codec: LinearCodec, folder: Path) -> None:
    """Writes config.json and the weights in diffusers' layout, in float16, which costs no PSNR."""
    blocks = len(CONFIG.block_out_channels)
    config = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.36.0"} | CONFIG.__dict__
    config |= {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "scaling_factor": codec.scaling_factor,
        "shift_factor": codec.shift_factor,
        "sample_size": SAMPLE_SIZE,
        "force_upcast": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
