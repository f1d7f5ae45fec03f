"""FLUX.2 klein: base, guided by two branches, and distilled from it to four steps without guidance; and dev,
which takes the guidance scale as an input.

Sources: Flux2KleinPipeline and Flux2Pipeline in diffusers; src/flux2/model.py in black-forest-labs/flux2, and
convert_flux2_transformer_checkpoint_to_diffusers in diffusers' loaders/single_file_utils.py. The colours are
ComfyUI's (comfy/latent_formats.py, Flux2), fitted by its authors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from triptych.families.family import Defaults, Family, GuidanceInput, LatentColours, OriginalFile
from triptych.families.layouts import Shapes, Table, Target, count, fused, same, swapped
from triptych.families.reference_sizes import References, shrunk_and_cropped

ROPE_AXES = 4
ROPE_THETA = 2000
MAX_REFERENCES = 10
"""A bound of this server: the reference has none."""
LATENTS = LatentColours(
    vae="AutoencoderKLFlux2",
    patch=2,
    rgb_factors=(
        (0.0058, 0.0113, 0.0073),
        (0.0495, 0.0443, 0.0836),
        (-0.0099, 0.0096, 0.0644),
        (0.2144, 0.3009, 0.3652),
        (0.0166, -0.0039, -0.0054),
        (0.0157, 0.0103, -0.0160),
        (-0.0398, 0.0902, -0.0235),
        (-0.0052, 0.0095, 0.0109),
        (-0.3527, -0.2712, -0.1666),
        (-0.0301, -0.0356, -0.0180),
        (-0.0107, 0.0078, 0.0013),
        (0.0746, 0.0090, -0.0941),
        (0.0156, 0.0169, 0.0070),
        (-0.0034, -0.0040, -0.0114),
        (0.0032, 0.0181, 0.0080),
        (-0.0939, -0.0008, 0.0186),
        (0.0018, 0.0043, 0.0104),
        (0.0284, 0.0056, -0.0127),
        (-0.0024, -0.0022, -0.0030),
        (0.1207, -0.0026, 0.0065),
        (0.0128, 0.0101, 0.0142),
        (0.0137, -0.0072, -0.0007),
        (0.0095, 0.0092, -0.0059),
        (0.0000, -0.0077, -0.0049),
        (-0.0465, -0.0204, -0.0312),
        (0.0095, 0.0012, -0.0066),
        (0.0290, -0.0034, 0.0025),
        (0.0220, 0.0169, -0.0048),
        (-0.0332, -0.0457, -0.0468),
        (-0.0085, 0.0389, 0.0609),
        (-0.0076, 0.0003, -0.0043),
        (-0.0111, -0.0460, -0.0614),
    ),
    rgb_bias=(-0.0329, -0.0718, -0.0851),
)


def table(layers: int, single_layers: int, width: int) -> Table:
    """FLUX.2's transformer with so many blocks of two streams and of one, `width` channels of a token."""
    table = {
        "img_in": same("x_embedder"),
        "txt_in": same("context_embedder"),
        "time_in.in_layer": same("time_guidance_embed.timestep_embedder.linear_1"),
        "time_in.out_layer": same("time_guidance_embed.timestep_embedder.linear_2"),
        "guidance_in.in_layer": same("time_guidance_embed.guidance_embedder.linear_1"),  # dev's
        "guidance_in.out_layer": same("time_guidance_embed.guidance_embedder.linear_2"),
        "double_stream_modulation_img.lin": same("double_stream_modulation_img.linear"),
        "double_stream_modulation_txt.lin": same("double_stream_modulation_txt.linear"),
        "single_stream_modulation.lin": same("single_stream_modulation.linear"),
        "final_layer.linear": same("proj_out"),
        "final_layer.adaLN_modulation.1": swapped("norm_out.linear"),
    }
    for index in range(layers):
        for stream in (_IMAGE, _TEXT):
            block = _double_stream(f"transformer_blocks.{index}", width, *stream)
            table |= {f"double_blocks.{index}.{name}": targets for name, targets in block}
    for index in range(single_layers):
        attention = f"single_transformer_blocks.{index}.attn"
        table |= {
            f"single_blocks.{index}.linear1": same(f"{attention}.to_qkv_mlp_proj"),
            f"single_blocks.{index}.linear2": same(f"{attention}.to_out"),
            f"single_blocks.{index}.norm.query_norm.scale": same(f"{attention}.norm_q.weight"),
            f"single_blocks.{index}.norm.key_norm.scale": same(f"{attention}.norm_k.weight"),
        }
    return table


# What a stream's names begin with, and diffusers' names: products, norms, output, MLP.
_IMAGE = ("img", "to_{}", "norm_{}", "to_out.0", "ff")
_TEXT = ("txt", "add_{}_proj", "norm_added_{}", "to_add_out", "ff_context")


def _double_stream(
    block: str, width: int, stream: str, product: str, norm: str, out: str, mlp: str
) -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield f"{stream}_attn.qkv", fused(width, *(f"{block}.attn.{product.format(part)}" for part in "qkv"))
    yield f"{stream}_attn.proj", same(f"{block}.attn.{out}")
    yield f"{stream}_attn.norm.query_norm.scale", same(f"{block}.attn.{norm.format('q')}.weight")
    yield f"{stream}_attn.norm.key_norm.scale", same(f"{block}.attn.{norm.format('k')}.weight")
    yield f"{stream}_mlp.0", same(f"{block}.{mlp}.linear_in")
    yield f"{stream}_mlp.2", same(f"{block}.{mlp}.linear_out")


def config(shapes: Shapes) -> dict[str, Any]:
    """The config of diffusers' Flux2Transformer2DModel. Raises KeyError for a tensor that is missing."""
    width, channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    return {
        "patch_size": 1,
        "in_channels": channels,
        "num_layers": count(shapes, "double_blocks"),
        "num_single_layers": count(shapes, "single_blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "timestep_guidance_channels": shapes["time_in.in_layer.weight"][1],
        "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight"][1] / width,
        "axes_dims_rope": [head_dim // ROPE_AXES] * ROPE_AXES,
        "rope_theta": ROPE_THETA,
        "eps": 1e-6,
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def lora_names(linears: Shapes) -> Table:
    """The names in flux2's model.py."""
    layers, single_layers = (count(linears, f"{kind}transformer_blocks") for kind in ("", "single_"))
    return table(layers, single_layers, linears["proj_out"][1])


FAMILY = Family(
    pipeline="Flux2KleinPipeline",
    transformer="Flux2Transformer2DModel",
    grid="even",  # np.linspace(1, 1 / n, n)
    mu="by tokens and steps",  # compute_empirical_mu
    defaults={False: Defaults(GuidanceInput.BRANCHES, 50, 4.0)},  # of Flux2KleinPipeline.__call__
    distilled=Defaults(GuidanceInput.NONE, 4, 1.0),  # its example; it ignores the scale
    latents=LATENTS,
    # of Flux2KleinPipeline.__call__ and Flux2ImageProcessor.check_image_input
    references=References(MAX_REFERENCES, shrunk_and_cropped(1024**2, 16, least_side=64, most_aspect=8)),
    lora_names=lora_names,
    mark="double_stream_modulation_img.linear.weight",
    original=OriginalFile(
        mark="double_stream_modulation_img.lin.weight",
        config=config,
        table=lambda shapes, known: table(
            known["num_layers"], known["num_single_layers"], shapes["img_in.weight"][0]
        ),
        scheduler=lambda shapes: {"shift": 3.0, "use_dynamic_shifting": True},
        text_encoders={"text_encoder": "qwen3_4b"},
    ),
    distilled_steps={"flux.2-klein-4b": 4, "flux.2-klein-9b": 4, "flux2-klein-4b": 4, "flux2-klein-9b": 4},
)

DEV = replace(
    FAMILY,
    pipeline="Flux2Pipeline",
    defaults={True: Defaults(GuidanceInput.EMBEDDED, 50, 4.0)},  # of Flux2Pipeline.__call__
    distilled=None,
    original=replace(FAMILY.original, text_encoders={"text_encoder": "mistral3_24b"}),
    distilled_steps={},
)
