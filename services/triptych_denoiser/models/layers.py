"""The layers that families of transformers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.compute.lora_changes import ChangedModule
from triptych.compute.offload import bring
from triptych_denoiser.models.activations import gelu_tanh, silu
from triptych_denoiser.models.products import like_the_first, row_products, tiled_products
from triptych_denoiser.models.streams import Stream

TIMESTEP_CHANNELS = 256
EPS = 1e-6
SAMPLE_TILE_ROWS = 16
FLOAT16_MAX = 65504.0


class RMSNorm(ChangedModule, nn.Module):
    """x / rms(x), cast to the weight's dtype, then times the weight, as the checkpoints were trained."""

    def __init__(self, dim: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same, in the weight's dtype."""
        weight: Tensor = self.weight
        for change, times in self.changes:
            weight = weight + times * change.delta(self.weight[:, None])[:, 0]
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(weight.dtype) * weight
        for change, times in self.changes:
            normed = normed if change.bias is None else normed + times * change.bias
        return normed


class ZeroCentredRMSNorm(RMSNorm):
    """x / rms(x) times (1 + weight), all in float32, in which the weight stays whatever the model's dtype."""

    def __init__(self, dim: int, eps: float = EPS) -> None:
        super().__init__(dim, eps)
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same, in its dtype."""
        weight = self.weight + 1.0
        for change, times in self.changes:
            weight = weight + times * change.delta(self.weight[:, None])[:, 0]
        normed = F.rms_norm(x.float(), x.shape[-1:], weight, self.eps)
        for change, times in self.changes:
            normed = normed if change.bias is None else normed + times * change.bias
        return normed.to(x.dtype)


class Float32RMSNorm(RMSNorm):
    """RMSNorm whose weight stays in float32 whatever the model's dtype, and so gives float32."""


class Linear(ChangedModule, nn.Linear):
    """A linear whose rows round the same however many there are, with the LoRAs of the pass that runs."""

    tiles: tuple[int, ...] = ()
    """Products are made of so many rows at a time (see tiled_products), or without any of all at once."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        rows = input.reshape(-1, self.in_features)
        product = _products(rows, self.weight, self.bias, self.tiles)
        for change, times in self.changes:
            product = change.added(product, rows, self.weight, times, self._product)
        return product.reshape(*input.shape[:-1], self.out_features)

    def _product(self, rows: Tensor, weight: Tensor) -> Tensor:
        return _products(rows, weight, None, self.tiles[:1])


def _products(rows: Tensor, weight: Tensor, bias: Tensor | None, tiles: tuple[int, ...]) -> Tensor:
    return tiled_products(rows, weight, bias, tiles) if tiles else row_products(rows, weight, bias)


def tile_products(modules: Collection[nn.Module], token_tiles: Sequence[int]) -> None:
    """Makes the products of a model's linears of tiles. `modules` are all of the model.

    Of those of `token_tiles`, ascending multiples of the first, a linear gets the ones that like_the_first
    found. Those of embeddings, which have a row per sample, are made of SAMPLE_TILE_ROWS.
    """
    embeddings = {
        linear
        for module in modules
        if isinstance(module, TwoLayers | Modulation)
        for linear in module.modules()
    }
    found: dict[object, tuple[int, ...]] = {}
    for module in modules:
        if module in embeddings and isinstance(module, Linear):
            module.tiles = (SAMPLE_TILE_ROWS,)
        elif isinstance(module, Linear):
            kind = (module.weight.shape, module.bias is None)
            if kind not in found:
                found[kind] = like_the_first(token_tiles, module.weight, module.bias)
            module.tiles = found[kind]


class TwoLayers(nn.Module):
    """Linear, SiLU or another activation, linear: the embedders of time, guidance and pooled text."""

    def __init__(
        self,
        dim_in: int,
        hidden: int,
        dim_out: int,
        *,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] = silu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linear_1 = Linear(dim_in, hidden, bias=bias)
        self.linear_2 = Linear(hidden, dim_out, bias=bias)

    def forward(self, rows: Tensor) -> Tensor:
        """[rows, dim_in] to [rows, dim_out]."""
        return self.linear_2(self.activation(self.linear_1(rows)))  # type: ignore[no-any-return]


class Modulation(nn.Module):
    """Shifts, scales and gates of an embedding: [rows, embedding] to `parts` of [rows, 1, width]."""

    def __init__(self, embedding: int, width: int, parts: int, *, bias: bool = True) -> None:
        super().__init__()
        self.parts = parts
        self.linear = Linear(embedding, parts * width, bias=bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """The parts, in the order of the checkpoint."""
        return self.linear(embedding)[:, None].chunk(self.parts, dim=-1)  # type: ignore[no-any-return]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, stream: Stream) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, without affine weights of its own."""
    return stream.apply(torch.addcmul, shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


def attention_input(modulation: Modulation, x: Tensor, embedding: Tensor, stream: Stream) -> Tensor:
    """What a block's attention is given of packed tokens, without a call of the block."""
    bring(modulation.linear.weight)
    shift, scale, *_ = modulation(embedding)
    return modulate(x, shift, scale, stream)


def add_gated(x: Tensor, gate: Tensor, change: Tensor, stream: Stream) -> Tensor:
    """x + gate * change."""
    return stream.apply(torch.addcmul, x, gate, change)


class FeedForward(nn.Module):
    """Linear to four times the width, GELU (tanh form), linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, 4 * width)
        self.linear_2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, width] to the same."""
        return self.linear_2(gelu_tanh(self.linear_1(x)))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(SiLU(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden, bias=False)
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, width] to the same."""
        return self.down(silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class FusedGatedFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020) whose two products are one: linear_2(SiLU(a) * b), a and b of linear_1(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, 2 * hidden, bias=False)
        self.linear_2 = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, width] to the same."""
        return self.linear_2(gated(self.linear_1(x)))  # type: ignore[no-any-return]


def gated(x: Tensor) -> Tensor:
    """SiLU of the first half of the channels times the second."""
    gate, value = x.chunk(2, dim=-1)
    return silu(gate) * value


class AttentionProjections(nn.Module):
    """A stream's queries, keys and values, each [rows, heads, tokens, head_dim], and its way out.

    With `qk_norm`, queries and keys are divided by their root mean square.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        qk_norm: bool = True,
        has_out: bool = True,
        bias: bool = True,
        eps: float = EPS,
        norm: type[RMSNorm] = RMSNorm,
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.norm_q = norm(head_dim, eps) if qk_norm else nn.Identity()
        self.norm_k = norm(head_dim, eps) if qk_norm else nn.Identity()
        self.out = Linear(width, width, bias=bias) if has_out else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of [rows, tokens, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.norm_q(q), self.norm_k(k), v


def timestep_features(timesteps: Tensor) -> Tensor:
    """Sinusoids of timesteps in [0, 1000]: [rows] to float32 [rows, 256], cosines first, periods up to
    10 000 (2π t).
    """
    half = TIMESTEP_CHANNELS // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rounded_timesteps(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """t = 1000 σ, rounded as FLUX's references round it: [rows] to [rows] in the model's dtype.

    diffusers' pipelines cast t to the model's dtype and divide by 1000; the transformers multiply by 1000
    again. In float32 that is t but for its last bits; in bfloat16 σ = 0.97705 gives 976.
    """
    return (1000 * sigma).to(dtype) / 1000 * 1000


def rounded_levels(sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """t = 1000 σ, rounded as Qwen-Image's references round it: [rows] to float32 [rows].

    There t is cast to the model's dtype and divided by 1000, and what is multiplied by 1000 again is float32.
    """
    return ((1000 * sigma).to(dtype) / 1000).float() * 1000


def rounded_guidance(guidance: Tensor, dtype: torch.dtype) -> Tensor:
    """1000 times the guidance scale in the model's dtype, as there: 3.5 gives 3504 in bfloat16."""
    return guidance.to(dtype) * 1000


def within_float16(x: Tensor) -> Tensor:
    """Float16 that overflowed becomes its largest value, as in the references; other dtypes as they are."""
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX) if x.dtype == torch.float16 else x


def patchify(latents: Tensor, patch: int) -> Tensor:
    """[rows, channels, height, width] to [rows, tokens, patch, patch, channels], tokens row by row."""
    rows, channels, height, width = latents.shape
    grid = latents.reshape(rows, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """[rows, tokens, patch, patch, channels] to [rows, channels, height, width]."""
    rows, _, patch, _, channels = tokens.shape
    grid = tokens.reshape(rows, height // patch, width // patch, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, height, width)


def pack_latents(latents: Tensor, patch: int) -> Tensor:
    """[rows, channels, height, width] to [rows, tokens, channels x patch x patch], tokens row by row."""
    return patchify(latents, patch).movedim(-1, 2).flatten(2)


def grid_of(latents: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of the tokens that pack_latents makes of latents [..., height, width]."""
    height, width = latents.shape[-2:]
    return height // patch, width // patch


def unpack_latents(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of pack_latents."""
    by_patch = torch.unflatten(tokens, -1, (-1, patch, patch)).movedim(2, -1)
    return unpatchify(by_patch, height, width)
