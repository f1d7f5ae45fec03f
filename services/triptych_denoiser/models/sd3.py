"""The SD3 family of transformers (SD3, SD3.5): joint attention over image and text tokens.

Architecture: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024
(https://arxiv.org/abs/2403.03206), figure 2; checkpoints in the layout of diffusers' SD3Transformer2DModel.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triptych.compute.config import ModelConfig
from triptych_denoiser.models.activations import silu
from triptych_denoiser.models.attention import Attention, Biases
from triptych_denoiser.models.keys import AROUND_JOINT_BLOCKS, JOINT_BLOCK, KeyTable
from triptych_denoiser.models.layers import (
    TIMESTEP_CHANNELS,
    AttentionProjections,
    FeedForward,
    Linear,
    Modulation,
    TwoLayers,
    add_gated,
    attention_input,
    modulate,
    patchify,
    timestep_features,
    unpatchify,
)
from triptych_denoiser.models.perturbed_attention import perturbed_biases
from triptych_denoiser.models.streams import Streams, streams
from triptych_denoiser.models.transformer import BlockReuse, Inputs, RowGroup, Rows, Transformer, running

MAX_TOKENS = 2048


@dataclass(frozen=True)
class SD3Config(ModelConfig):
    """The keys of `transformer/config.json` that decide the architecture."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
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

    def __post_init__(self) -> None:
        if self.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm is {self.qk_norm!r}; SD3 transformers have null or 'rms_norm'")
        if self.out_channels not in (None, self.in_channels):
            raise ValueError(
                f"out_channels is {self.out_channels}, but must equal in_channels = {self.in_channels}: "
                "a velocity has the shape of the latents"
            )
        if self.caption_projection_dim != self.width:
            raise ValueError(
                f"caption_projection_dim is {self.caption_projection_dim}, but must equal "
                f"num_attention_heads x attention_head_dim = {self.width}: the streams share an attention"
            )


class JointBlock(nn.Module):
    """One block: image and text tokens are modulated, attend to all of both, and pass through their own MLPs.

    `dual` adds a second attention among image tokens alone (SD3.5-medium). In the `last` block the text
    stream only gives keys and values: nothing reads it afterwards.
    """

    def __init__(self, config: SD3Config, dual: bool, last: bool) -> None:
        super().__init__()
        width, heads, head_dim = config.width, config.num_attention_heads, config.attention_head_dim
        qk_norm = config.qk_norm is not None
        self.image_modulation = Modulation(width, width, 9 if dual else 6)
        self.text_modulation = Modulation(width, width, 2 if last else 6)
        self.image_attention = AttentionProjections(heads, head_dim, qk_norm=qk_norm)
        self.text_attention = AttentionProjections(heads, head_dim, qk_norm=qk_norm, has_out=not last)
        self.image_attention_2 = AttentionProjections(heads, head_dim, qk_norm=qk_norm) if dual else None
        self.attend = Attention()
        self.image_mlp = FeedForward(width)
        self.text_mlp = None if last else FeedForward(width)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        embedding: Tensor,
        rows: Streams,
        key_biases: Biases,
        perturbed: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, packed, of those before and the embedding [rows, width]."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual = self.image_modulation(embedding)
        image_in = modulate(image, shift, scale, rows.image)
        if self.text_mlp is None:
            text_scale, text_shift = self.text_modulation(embedding)
        else:
            text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = (
                self.text_modulation(embedding)
            )
        text_in = modulate(text, text_shift, text_scale, rows.text)

        image_qkv, text_qkv = self.image_attention(image_in), self.text_attention(text_in)
        q, k, v = (rows.join(*pair) for pair in zip(image_qkv, text_qkv, strict=True))
        biases = perturbed_biases(q, rows.image_parts, key_biases) if perturbed else key_biases
        image_attended, text_attended = rows.cut(self.attend(q, k, v, biases))

        image_before = image
        image = add_gated(image, gate, self.image_attention.out(image_attended), rows.image)
        if self.image_attention_2 is not None:
            shift_2, scale_2, gate_2 = dual
            image_qkv = self.image_attention_2(modulate(image_before, shift_2, scale_2, rows.image))
            groups = [rows.image.groups(each) for each in image_qkv]
            # An image token that sees no other leaves with its own value.
            attended = (
                [v.transpose(1, 2).flatten(2) for v in groups[2]] if perturbed else self.attend(*groups)
            )
            out = self.image_attention_2.out(rows.image.pack(attended))
            image = add_gated(image, gate_2, out, rows.image)
        mlp = self.image_mlp(modulate(image, mlp_shift, mlp_scale, rows.image))
        image = add_gated(image, mlp_gate, mlp, rows.image)

        if self.text_mlp is not None:
            text = add_gated(text, text_gate, self.text_attention.out(text_attended), rows.text)
            mlp = self.text_mlp(modulate(text, text_mlp_shift, text_mlp_scale, rows.text))
            text = add_gated(text, text_mlp_gate, mlp, rows.text)
        return image, text


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


BLOCK: KeyTable = (
    *JOINT_BLOCK,
    *((f"attn2.to_{p}", "image_attention_2.qkv", i) for i, p in enumerate("qkv")),
    *((f"attn2.norm_{p}", f"image_attention_2.norm_{p}", None) for p in "qk"),
    ("attn2.to_out.0", "image_attention_2.out", None),
)


class SD3Transformer(Transformer):
    """v = f(x, σ, conditioning) for the SD3 family.

    Text tokens have no positions, so n equal ones stay equal in every block: they are given once, and weigh
    as one with log n added to its logit.
    """

    config_class = SD3Config
    outside_blocks = (
        ("pos_embed.pos_embed", "positions", None),
        ("pos_embed.proj", "patch_embed", None),
        *AROUND_JOINT_BLOCKS,
    )
    stacks = (("transformer_blocks", "blocks", BLOCK),)
    positions: Tensor

    def __init__(self, config: SD3Config) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        # The paper's 2 x 2, stride-2 convolution as a linear of patches: it rounds the same in any batch.
        self.patch_embed = Linear(config.in_channels * patch * patch, width)
        spacing = config.sample_size / patch / config.pos_embed_max_size
        positions = torch.empty(1, config.pos_embed_max_size**2, width)
        if not positions.is_meta:  # a checkpoint has them, and arithmetic on "meta" takes a second to import
            positions = position_table(width, config.pos_embed_max_size, spacing)
        self.register_buffer("positions", positions)
        self.time_embed = TwoLayers(TIMESTEP_CHANNELS, width, width)
        self.pooled_embed = TwoLayers(config.pooled_projection_dim, width, width)
        self.text_embed = Linear(config.joint_attention_dim, width)
        self.blocks = nn.ModuleList(
            JointBlock(config, dual=i in config.dual_attention_layers, last=i == config.num_layers - 1)
            for i in range(config.num_layers)
        )
        self.final_modulation = Modulation(width, width, 2)
        self.final = Linear(width, config.in_channels * patch * patch)

    @property
    def inputs(self) -> Inputs:
        """What the model takes: sizes as far as the table of positions goes."""
        config = self.config
        return Inputs(
            channels=config.in_channels,
            size_multiple=config.patch_size,
            token_size=config.patch_size,
            max_size=config.pos_embed_max_size * config.patch_size,
            default_size=config.sample_size,
            joint_attention_dim=config.joint_attention_dim,
            pooled_projection_dim=config.pooled_projection_dim,
            max_tokens=MAX_TOKENS,
            text_positions=False,
            guidance=False,
            num_layers=config.num_layers,
        )

    def mixed(
        self,
        groups: Sequence[RowGroup],
        sigma: Tensor,
        pooled: Tensor,
        skipped_layers: Collection[int],
        perturbed_layers: Collection[int],
        reuse: BlockReuse,
    ) -> list[Tensor]:
        """The velocities of rows of several sizes and text lengths, by group: see Transformer.mixed."""
        timesteps = timestep_features(1000 * sigma).to(pooled.dtype)
        embedding = silu(self.time_embed(timesteps) + self.pooled_embed(pooled))
        images = [self.embed(group.latents) for group in groups]
        texts = [self.text_embed(group.sequence) for group in groups]
        rows = streams(images, texts, image_first=True)
        image, text = rows.image.pack(images), rows.text.pack(texts)
        key_biases = [
            self.key_bias(image, tokens, group.trailing_repeats)
            for tokens, group in zip(rows.both.tokens, groups, strict=True)
        ]

        def through(layers: range, image: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
            for block, perturbed in running(self.blocks, layers, skipped_layers, perturbed_layers):
                image, text = block(image, text, embedding, rows, key_biases, perturbed)
            return image, text

        def others(some: Rows) -> Tensor:
            layers = range(1, len(self.blocks))
            return through(layers, first_image[some], first_text[some], embedding[some])[0]

        first_image, first_text = through(range(1), image, text, embedding)

        def modulated_image() -> Tensor:
            modulation = cast(JointBlock, self.blocks[0]).image_modulation
            return attention_input(modulation, image, embedding, rows.image)

        image = reuse(image, first_image, others, modulated_image)
        scale, shift = self.final_modulation(embedding)
        modulated = rows.image.groups(modulate(image, shift, scale, rows.image))
        return [self.velocity(*each) for each in zip(modulated, groups, strict=True)]

    def embed(self, latents: Tensor) -> Tensor:
        """Image tokens of equal rows: [rows, tokens, width]."""
        patches = patchify(latents, self.config.patch_size).permute(0, 1, 4, 2, 3).flatten(2)
        return self.patch_embed(patches) + self.cropped_positions(*latents.shape[-2:])  # type: ignore[no-any-return]

    def velocity(self, image: Tensor, group: RowGroup) -> Tensor:
        """Like the latents, of modulated image tokens."""
        patch, (height, width) = self.config.patch_size, group.latents.shape[-2:]
        return unpatchify(self.final(image).unflatten(-1, (patch, patch, -1)), height, width)

    def cropped_positions(self, height: int, width: int) -> Tensor:
        """The centre of the stored table: [1, tokens, width] for latents of this height and width."""
        size, p = self.config.pos_embed_max_size, self.config.patch_size
        rows, columns = height // p, width // p
        top, left = (size - rows) // 2, (size - columns) // 2
        table = self.positions.reshape(1, size, size, -1)
        return table[:, top : top + rows, left : left + columns].flatten(1, 2)

    def checkpoint_keys(self) -> dict[str, Tensor]:
        """As Transformer.checkpoint_keys; the embedding of patches is a convolution there."""
        keys, patch = super().checkpoint_keys(), self.config.patch_size
        linear = keys["pos_embed.proj.weight"]
        keys["pos_embed.proj.weight"] = linear.reshape(len(linear), -1, patch, patch)
        return keys

    @staticmethod
    def key_bias(like: Tensor, tokens: int, trailing_repeats: int) -> Tensor | None:
        """log n on the last key, [1, 1, 1, tokens], dtype and device of `like`; None for n = 1."""
        if trailing_repeats == 1:
            return None
        bias = like.new_zeros(1, 1, 1, tokens)
        bias[..., -1] = math.log(trailing_repeats)
        return bias
