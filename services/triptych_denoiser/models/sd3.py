"""The SD3 family of transformers (SD3, SD3.5): joint attention over image and text tokens.

Architecture: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024
(https://arxiv.org/abs/2403.03206), figure 2; checkpoints in the layout of diffusers' SD3Transformer2DModel.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych_denoiser.models.perturbed_attention import perturbed_bias

TIMESTEP_CHANNELS = 256
EPS = 1e-6
MIN_ROWS = 4


@dataclass(frozen=True)
class SD3Config:
    """The keys of `transformer/config.json` that decide the architecture.

    Raises:
        ValueError: from `from_dict`, for a value that this implementation does not support.
    """

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SD3Config":
        """Reads a diffusers config; keys it does not know are bookkeeping and ignored."""
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        known["dual_attention_layers"] = tuple(known.get("dual_attention_layers", ()))
        known.setdefault("out_channels", known.get("in_channels", cls.in_channels))
        parsed = cls(**known)
        if parsed.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm is {parsed.qk_norm!r}; SD3 transformers have null or 'rms_norm'")
        if parsed.caption_projection_dim != parsed.width:
            raise ValueError(
                f"caption_projection_dim is {parsed.caption_projection_dim}, but must equal "
                f"num_attention_heads x attention_head_dim = {parsed.width}: the streams share an attention"
            )
        return parsed


class RMSNorm(nn.Module):
    """x / rms(x), cast to the weight's dtype, then times the weight, as SD3 checkpoints were trained."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same, in the weight's dtype."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(self.weight.dtype) * self.weight


class Linear(nn.Linear):
    """A linear whose rows round the same however many there are.

    MKL computes products with fewer than four rows, or with strided ones, by kernels that round differently;
    a row's bits must not depend on its company.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        rows = input.reshape(-1, self.in_features)
        lacking = max(MIN_ROWS - len(rows), 0)
        product = F.linear(F.pad(rows, (0, 0, 0, lacking)) if lacking else rows, self.weight, self.bias)
        return product[: len(rows)].reshape(*input.shape[:-1], self.out_features)


class TwoLayers(nn.Module):
    """Linear, SiLU, linear: the embedders of time and pooled text."""

    def __init__(self, dim_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(dim_in, width)
        self.linear_2 = Linear(width, width)

    def forward(self, rows: Tensor) -> Tensor:
        """[rows, dim_in] to [rows, width]."""
        return self.linear_2(F.silu(self.linear_1(rows)))  # type: ignore[no-any-return]


class Modulation(nn.Module):
    """Shifts, scales and gates of an embedding: [rows, width] to `parts` of [rows, 1, width]."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = Linear(width, parts * width)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """The parts, in the order of the checkpoint."""
        return self.linear(embedding)[:, None].chunk(self.parts, dim=-1)  # type: ignore[no-any-return]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, without affine weights of its own."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


class FeedForward(nn.Module):
    """Linear to four times the width, GELU (tanh form), linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(width, 4 * width)
        self.linear_2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, width] to the same."""
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))  # type: ignore[no-any-return]


class AttentionProjections(nn.Module):
    """A stream's queries, keys and values, each [rows, heads, tokens, head_dim], and its way out."""

    def __init__(self, config: SD3Config, has_out: bool = True) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.norm_q = RMSNorm(config.attention_head_dim) if config.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(config.attention_head_dim) if config.qk_norm else nn.Identity()
        self.out = Linear(config.width, config.width) if has_out else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of [rows, tokens, width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.norm_q(q), self.norm_k(k), v


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √head_dim + key_bias) v: [rows, heads, tokens, head_dim] to [rows, tokens, width]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_bias).transpose(1, 2).flatten(2)


class JointBlock(nn.Module):
    """One block: image and text tokens are modulated, attend to all of both, and pass through their own MLPs.

    `dual` adds a second attention among image tokens alone (SD3.5-medium). In the `last` block the text
    stream only gives keys and values: nothing reads it afterwards.
    """

    def __init__(self, config: SD3Config, dual: bool, last: bool) -> None:
        super().__init__()
        width = config.width
        self.image_modulation = Modulation(width, 9 if dual else 6)
        self.text_modulation = Modulation(width, 2 if last else 6)
        self.image_attention = AttentionProjections(config)
        self.text_attention = AttentionProjections(config, has_out=not last)
        self.image_attention_2 = AttentionProjections(config) if dual else None
        self.image_mlp = FeedForward(width)
        self.text_mlp = None if last else FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, embedding: Tensor, key_bias: Tensor | None, perturbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, [rows, tokens, width], of those before and the embedding [rows, width]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual = self.image_modulation(embedding)
        image_in = modulate(image, shift, scale)
        if self.text_mlp is None:
            text_scale, text_shift = self.text_modulation(embedding)
        else:
            text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = (
                self.text_modulation(embedding)
            )
        text_in = modulate(text, text_shift, text_scale)

        image_qkv, text_qkv = self.image_attention(image_in), self.text_attention(text_in)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(image_qkv, text_qkv, strict=True))
        bias = perturbed_bias(image, text, key_bias) if perturbed else key_bias
        attended = attention(q, k, v, bias)
        image_attended, text_attended = attended[:, : image.shape[1]], attended[:, image.shape[1] :]

        image_before = image
        image = torch.addcmul(image, gate, self.image_attention.out(image_attended))
        if self.image_attention_2 is not None:
            shift_2, scale_2, gate_2 = dual
            q, k, v = self.image_attention_2(modulate(image_before, shift_2, scale_2))
            attended_2 = v.transpose(1, 2).flatten(2) if perturbed else attention(q, k, v)
            image = torch.addcmul(image, gate_2, self.image_attention_2.out(attended_2))
        image = torch.addcmul(image, mlp_gate, self.image_mlp(modulate(image, mlp_shift, mlp_scale)))

        if self.text_mlp is not None:
            text = torch.addcmul(text, text_gate, self.text_attention.out(text_attended))
            text = torch.addcmul(
                text, text_mlp_gate, self.text_mlp(modulate(text, text_mlp_shift, text_mlp_scale))
            )
        return image, text


def timestep_features(sigma: Tensor) -> Tensor:
    """Sinusoids of t = 1000 σ: [rows] to float32 [rows, 256], cosines first, periods up to 10 000 (2π t)."""
    half = TIMESTEP_CHANNELS // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=sigma.device) / half
    )
    angles = (1000.0 * sigma.float())[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_table(width: int, size: int, spacing: float = 1.0) -> Tensor:
    """Sinusoidal embeddings of a size x size grid of tokens: float32 [1, size², width], x in the first half.

    diffusers' get_2d_sincos_pos_embed: sines then cosines of position x 10000^(-i / (width/4)), in float64.
    `spacing` is the distance of neighbours (diffusers: sample_size / patch_size / pos_embed_max_size).
    """
    positions = torch.arange(size, dtype=torch.float64) * spacing
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = positions[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    x = axis[None, :, :].expand(size, size, -1)
    y = axis[:, None, :].expand(size, size, -1)
    return torch.cat([x, y], dim=-1).reshape(1, size * size, width).float()


class SD3Transformer(nn.Module):
    """v = f(x, σ, conditioning) for the SD3 family."""

    positions: Tensor

    def __init__(self, config: SD3Config) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        # The paper's 2 x 2, stride-2 convolution as a linear of patches: it rounds the same in any batch.
        self.patch_embed = Linear(config.in_channels * patch * patch, width)
        spacing = config.sample_size / patch / config.pos_embed_max_size
        self.register_buffer("positions", position_table(width, config.pos_embed_max_size, spacing))
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width)
        self.pooled_embed = TwoLayers(config.pooled_projection_dim, width)
        self.text_embed = Linear(config.joint_attention_dim, width)
        self.blocks = nn.ModuleList(
            JointBlock(config, dual=i in config.dual_attention_layers, last=i == config.num_layers - 1)
            for i in range(config.num_layers)
        )
        self.final_modulation = Modulation(width, 2)
        self.final = Linear(width, config.out_channels * patch * patch)

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        sequence: Tensor,
        pooled: Tensor,
        trailing_repeats: int = 1,
        skipped_layers: Collection[int] = (),
        perturbed_layers: Collection[int] = (),
    ) -> Tensor:
        """The velocity dx/dσ of every row.

        Args:
            latents: [rows, in_channels, height, width], height and width multiples of the patch size.
            sigma: float32 [rows], in [0, 1].
            sequence: [rows, tokens, joint_attention_dim].
            pooled: [rows, pooled_projection_dim].
            trailing_repeats: how many equal tokens the last token of `sequence` stands for. Text tokens have
                no positions, so n equal ones stay equal in every block and weigh as one with log n added to
                its logit.
            skipped_layers: blocks that change nothing.
            perturbed_layers: blocks in which image tokens do not see each other (perturbed_bias).

        Returns:
            [rows, out_channels, height, width], dtype of the latents.
        """
        height, width = latents.shape[-2:]
        embedding = self.time_embed(timestep_features(sigma).to(pooled.dtype)) + self.pooled_embed(pooled)
        embedding = F.silu(embedding)
        image = self.patch_embed(self.patchify(latents)) + self.cropped_positions(height, width)
        text = self.text_embed(sequence)
        key_bias = self.key_bias(image, text, trailing_repeats)
        for index, block in enumerate(self.blocks):
            if index not in skipped_layers:
                image, text = block(image, text, embedding, key_bias, index in perturbed_layers)
        scale, shift = self.final_modulation(embedding)
        return self.unpatchify(self.final(modulate(image, shift, scale)), height, width)

    def patchify(self, latents: Tensor) -> Tensor:
        """[rows, channels, height, width] to [rows, tokens, channels x patch x patch]."""
        rows, channels, height, width = latents.shape
        p = self.config.patch_size
        grid = latents.reshape(rows, channels, height // p, p, width // p, p)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * p * p)

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[rows, tokens, patch x patch x channels] to [rows, channels, height, width]."""
        p = self.config.patch_size
        grid = tokens.reshape(len(tokens), height // p, width // p, p, p, -1)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height, width)

    def cropped_positions(self, height: int, width: int) -> Tensor:
        """The centre of the stored table: [1, tokens, width] for latents of this height and width."""
        size, p = self.config.pos_embed_max_size, self.config.patch_size
        rows, columns = height // p, width // p
        top, left = (size - rows) // 2, (size - columns) // 2
        table = self.positions.reshape(1, size, size, -1)
        return table[:, top : top + rows, left : left + columns].flatten(1, 2)

    @staticmethod
    def key_bias(image: Tensor, text: Tensor, trailing_repeats: int) -> Tensor | None:
        """log n on the last text token's key, as [1, 1, 1, tokens]; None for n = 1."""
        if trailing_repeats == 1:
            return None
        bias = image.new_zeros(1, 1, 1, image.shape[1] + text.shape[1])
        bias[..., -1] = math.log(trailing_repeats)
        return bias


# Where the parts of diffusers' SD3Transformer2DModel are here; the third item is which of three fused ones.
_Table = tuple[tuple[str, str, int | None], ...]

_OUTSIDE_BLOCKS: _Table = (
    ("pos_embed.pos_embed", "positions", None),
    ("pos_embed.proj", "patch_embed", None),
    *((f"time_text_embed.timestep_embedder.linear_{i}", f"time_embed.linear_{i}", None) for i in (1, 2)),
    *((f"time_text_embed.text_embedder.linear_{i}", f"pooled_embed.linear_{i}", None) for i in (1, 2)),
    ("context_embedder", "text_embed", None),
    ("norm_out.linear", "final_modulation.linear", None),
    ("proj_out", "final", None),
)
_IN_BLOCKS: _Table = (
    ("norm1.linear", "image_modulation.linear", None),
    ("norm1_context.linear", "text_modulation.linear", None),
    *((f"attn.to_{p}", "image_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.add_{p}_proj", "text_attention.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn2.to_{p}", "image_attention_2.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn.norm_{p}", f"image_attention.norm_{p}", None) for p in "qk"),
    *((f"attn.norm_added_{p}", f"text_attention.norm_{p}", None) for p in "qk"),
    *((f"attn2.norm_{p}", f"image_attention_2.norm_{p}", None) for p in "qk"),
    ("attn.to_out.0", "image_attention.out", None),
    ("attn.to_add_out", "text_attention.out", None),
    ("attn2.to_out.0", "image_attention_2.out", None),
    ("ff.net.0.proj", "image_mlp.linear_1", None),
    ("ff.net.2", "image_mlp.linear_2", None),
    ("ff_context.net.0.proj", "text_mlp.linear_1", None),
    ("ff_context.net.2", "text_mlp.linear_2", None),
)


def checkpoint_keys(model: SD3Transformer) -> dict[str, Tensor]:
    """diffusers' name of every weight, with the view of this model's parameter or buffer that holds it.

    Copying into the views loads a checkpoint; copying them out writes one.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    prefixes = [("", "", _OUTSIDE_BLOCKS)]
    prefixes += [(f"transformer_blocks.{i}.", f"blocks.{i}.", _IN_BLOCKS) for i in range(len(model.blocks))]
    keys: dict[str, Tensor] = {}
    for theirs_prefix, ours_prefix, table in prefixes:
        for theirs, ours, part in table:
            for suffix in ("", ".weight", ".bias"):
                tensor = own.get(f"{ours_prefix}{ours}{suffix}")
                if tensor is None:
                    continue
                data = tensor.data if part is None else tensor.data.chunk(3)[part]
                if theirs == "pos_embed.proj" and suffix == ".weight":
                    patch = model.config.patch_size
                    data = data.reshape(len(data), -1, patch, patch)
                keys[f"{theirs_prefix}{theirs}{suffix}"] = data
    return keys


def load_weights(model: SD3Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint's tensors into the model, converting to its dtype and device.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape than the config says.
    """
    targets = checkpoint_keys(model)
    missing, unknown = sorted(targets.keys() - set(tensors)), sorted(set(tensors) - targets.keys())
    if missing or unknown:
        raise ValueError(
            f"the transformer's weights do not fit its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}"
        )
    for key, target in targets.items():
        tensor = tensors[key]
        if tensor.shape != target.shape:
            raise ValueError(
                f"{key} has shape {list(tensor.shape)}, the config asks for {list(target.shape)}"
            )
        target.copy_(tensor)


def build(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str, dtype: torch.dtype
) -> SD3Transformer:
    """The transformer of a checkpoint, ready to run. `config` and `tensors` as diffusers stores them.

    Raises:
        ValueError: the config is not supported or the tensors do not fit it.
    """
    with torch.device("meta"):
        model = SD3Transformer(SD3Config.from_dict(config))
    model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    load_weights(model, tensors)
    return model
