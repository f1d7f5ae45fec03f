"""diffusers' key names back to Stability's and Black Forest Labs'.

Kept apart from the package's tables on purpose. Where both err in the same way, diffusers' own conversion,
which the tests compare with too, does not.
"""

import re
from collections.abc import Iterable

import torch

Tensors = dict[str, torch.Tensor]


def sd3_transformer(tensors: Tensors) -> Tensors:
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks."))
    tensors = _swapped(dict(tensors), ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"))
    for parts, fused in (
        (("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.qkv"),
        (("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv"),
    ):
        tensors = _joined(tensors, parts, fused)
    return _renamed(
        tensors,
        (r"^transformer_blocks\.", "joint_blocks."),
        (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
        (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
        (r"\.(attn2?)\.to_out\.0\.", r".x_block.\1.proj."),
        (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
        (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
        (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
        (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."),
        (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
        (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
        (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
        (r"^pos_embed\.pos_embed$", "pos_embed"),
        (r"^pos_embed\.proj\.", "x_embedder.proj."),
        (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
        (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
        (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
        (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    )


def flux_transformer(tensors: Tensors) -> Tensors:
    tensors = _swapped(dict(tensors), ("norm_out.linear",))
    single = tuple(f"single.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    tensors = _renamed(tensors, (r"^single_transformer_blocks\.(\d+)\.", r"single_blocks.\1.single."))
    tensors = _joined(tensors, single, "linear1")
    for parts, fused in (
        (("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
    ):
        tensors = _joined(tensors, parts, fused)
    return _renamed(
        tensors,
        (r"\.single\.attn\.norm_q\.weight$", ".norm.query_norm.scale"),
        (r"\.single\.attn\.norm_k\.weight$", ".norm.key_norm.scale"),
        (r"\.single\.norm\.linear\.", ".modulation.lin."),
        (r"\.single\.proj_out\.", ".linear2."),
        (r"^transformer_blocks\.", "double_blocks."),
        (r"\.attn\.norm_q\.weight$", ".img_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_k\.weight$", ".img_attn.norm.key_norm.scale"),
        (r"\.attn\.norm_added_q\.weight$", ".txt_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_added_k\.weight$", ".txt_attn.norm.key_norm.scale"),
        (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
        (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
        (r"\.norm1\.linear\.", ".img_mod.lin."),
        (r"\.norm1_context\.linear\.", ".txt_mod.lin."),
        (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
        (r"\.ff\.net\.2\.", ".img_mlp.2."),
        (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
        (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
        (r"^x_embedder\.", "img_in."),
        (r"^context_embedder\.", "txt_in."),
        (r"^time_text_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
        (r"^time_text_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
        (r"^time_text_embed\.text_embedder\.linear_1\.", "vector_in.in_layer."),
        (r"^time_text_embed\.text_embedder\.linear_2\.", "vector_in.out_layer."),
        (r"^time_text_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
        (r"^time_text_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    )


def flux2_transformer(tensors: Tensors) -> Tensors:
    tensors = _swapped(dict(tensors), ("norm_out.linear",))
    for parts, fused in (
        (("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv"),
        (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv"),
    ):
        tensors = _joined(tensors, parts, fused)
    return _renamed(
        tensors,
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"single_blocks.\1.linear2."),
        (
            r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight$",
            r"single_blocks.\1.norm.query_norm.scale",
        ),
        (
            r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight$",
            r"single_blocks.\1.norm.key_norm.scale",
        ),
        (r"^transformer_blocks\.", "double_blocks."),
        (r"\.attn\.norm_q\.weight$", ".img_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_k\.weight$", ".img_attn.norm.key_norm.scale"),
        (r"\.attn\.norm_added_q\.weight$", ".txt_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_added_k\.weight$", ".txt_attn.norm.key_norm.scale"),
        (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
        (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
        (r"\.ff\.linear_in\.", ".img_mlp.0."),
        (r"\.ff\.linear_out\.", ".img_mlp.2."),
        (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
        (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
        (r"^x_embedder\.", "img_in."),
        (r"^context_embedder\.", "txt_in."),
        (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
        (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
        (r"^time_guidance_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
        (r"^time_guidance_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
        (r"^(double|single)_stream_modulation(_img|_txt)?\.linear\.", r"\1_stream_modulation\2.lin."),
        (r"^proj_out\.", "final_layer.linear."),
        (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    )


def flux3_transformer(tensors: Tensors) -> Tensors:
    return _renamed(
        _swapped(dict(tensors), ("norm_out.linear",)),
        (r"^mode_blocks\.", "content_mode_blocks."),
        (r"^single_transformer_blocks\.", "single_blocks."),
        (r"\.attn\.to_([qkv])\.", r".\1_proj."),
        (r"\.attn\.to_out\.0\.", ".attn_out."),
        (r"\.attn\.norm_q\.weight$", ".norm.query_norm.scale"),
        (r"\.attn\.norm_k\.weight$", ".norm.key_norm.scale"),
        (r"\.ff\.linear_in\.", ".mlp_in."),
        (r"\.ff\.linear_out\.", ".mlp_out."),
        (r"^x_embedders\.", "emb_in."),
        (r"^context_embedder\.", "txt_in."),
        (r"^timestep_embedder\.linear_1\.", "time_in.in_layer."),
        (r"^timestep_embedder\.linear_2\.", "time_in.out_layer."),
        (r"^target_timestep_embedder\.linear_1\.", "ref_time_in.in_layer."),
        (r"^target_timestep_embedder\.linear_2\.", "ref_time_in.out_layer."),
        (r"(_stream_modulations\.\w+)\.linear\.", r"\1.lin."),
        (r"^proj_out\.", "final_layer.image.linear."),
        (r"^norm_out\.linear\.", "final_layer.image.adaLN_modulation.1."),
    )


def krea2_transformer(tensors: Tensors) -> Tensors:
    flat = {
        name: tensor.flatten() if re.search(r"^transformer_blocks\..*scale_shift_table$", name) else tensor
        for name, tensor in tensors.items()
    }
    return _renamed(
        flat,
        (r"^final_layer\.scale_shift_table$", "last.modulation.lin"),
        (r"^final_layer\.norm\.weight$", "last.norm.scale"),
        (r"^final_layer\.linear\.", "last.linear."),
        (r"^transformer_blocks\.", "blocks."),
        (r"^text_fusion\.", "txtfusion."),
        (r"\.scale_shift_table$", ".mod.lin"),
        (r"\.attn\.to_([qkv])\.", r".attn.w\1."),
        (r"\.attn\.to_out\.0\.", ".attn.wo."),
        (r"\.attn\.to_gate\.", ".attn.gate."),
        (r"\.attn\.norm_([qk])\.weight$", r".attn.qknorm.\1norm.scale"),
        (r"\.ff\.", ".mlp."),
        (r"\.norm1\.weight$", ".prenorm.scale"),
        (r"\.norm2\.weight$", ".postnorm.scale"),
        (r"^img_in\.", "first."),
        (r"^time_embed\.linear_1\.", "tmlp.0."),
        (r"^time_embed\.linear_2\.", "tmlp.2."),
        (r"^time_mod_proj\.", "tproj.1."),
        (r"^txt_in\.norm\.weight$", "txtmlp.0.scale"),
        (r"^txt_in\.linear_1\.", "txtmlp.1."),
        (r"^txt_in\.linear_2\.", "txtmlp.3."),
    )


def qwen_image_transformer(tensors: Tensors) -> Tensors:
    """Its authors' are diffusers'."""
    return tensors


def qwen_image21_transformer(tensors: Tensors) -> Tensors:
    """As node editors have it."""
    return _joined(tensors, ("img_mlp.gate_layer", "img_mlp.proj"), "img_mlp.gate_up")


def z_image_transformer(tensors: Tensors) -> Tensors:
    tensors = _joined(tensors, ("attention.to_q", "attention.to_k", "attention.to_v"), "attention.qkv")
    return _renamed(
        tensors,
        (r"\.attention\.to_out\.0\.", ".attention.out."),
        (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
        (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
    )


TRANSFORMERS = {
    "SD3Transformer2DModel": sd3_transformer,
    "FluxTransformer2DModel": flux_transformer,
    "Flux2Transformer2DModel": flux2_transformer,
    "Flux3Transformer2DModel": flux3_transformer,
    "Krea2Transformer2DModel": krea2_transformer,
    "QwenImageTransformer2DModel": qwen_image_transformer,
    "QwenImage21Transformer2DModel": qwen_image21_transformer,
    "ZImageTransformer2DModel": z_image_transformer,
}


def autoencoder(tensors: Tensors, levels: int) -> Tensors:
    tensors = {
        name: tensor[:, :, None, None] if re.search(r"attentions\.0\.to_.*weight", name) else tensor
        for name, tensor in tensors.items()
    }
    ups = [(rf"\.up_blocks\.{level}\.", f".up.{levels - 1 - level}.") for level in range(levels)]
    return _renamed(
        tensors,
        *ups,
        (r"\.down_blocks\.", ".down."),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"\.resnets\.", ".block."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    )


def flux2_autoencoder(tensors: Tensors, levels: int) -> Tensors:
    return _renamed(
        autoencoder(tensors, levels),
        (r"^quant_conv\.", "encoder.quant_conv."),
        (r"^post_quant_conv\.", "decoder.post_quant_conv."),
    )


def wan_autoencoder(tensors: Tensors, blocks: int) -> Tensors:
    """AutoencoderKLQwenImage as Wan's authors name its kind; `blocks`: residual ones of a level."""

    def upsample(match: re.Match[str]) -> str:
        level, part, index = int(match[1]), match[2], int(match[3])
        return f"decoder.upsamples.{level * (blocks + 2) + (blocks + 1 if part == 'upsamplers' else index)}."

    up = r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\."
    return _renamed(
        {re.sub(up, upsample, name): tensor for name, tensor in tensors.items()},
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"\.down_blocks\.", ".downsamples."),
        (r"((?:samples|middle)\.\d+)\.norm1\.", r"\1.residual.0."),
        (r"((?:samples|middle)\.\d+)\.conv1\.", r"\1.residual.2."),
        (r"((?:samples|middle)\.\d+)\.norm2\.", r"\1.residual.3."),
        (r"((?:samples|middle)\.\d+)\.conv2\.", r"\1.residual.6."),
        (r"\.conv_shortcut\.", ".shortcut."),
    )


def _renamed(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        original = name
        for pattern, replacement in rules:
            original = re.sub(pattern, replacement, original)
        renamed[original] = tensor
    return renamed


def _joined(tensors: Tensors, parts: tuple[str, ...], fused: str) -> Tensors:
    """The parts' tensors one below the other, under the fused name, wherever there are all."""
    joined = dict(tensors)
    for name in tensors:
        prefix, found, suffix = name.partition(f".{parts[0]}.")
        if found:
            rows = [joined.pop(f"{prefix}.{part}.{suffix}") for part in parts]
            joined[f"{prefix}.{fused}.{suffix}"] = torch.cat(rows)
    return joined


def _swapped(tensors: Tensors, modules: Iterable[str]) -> Tensors:
    for name in (f"{module}.{parameter}" for module in modules for parameter in ("weight", "bias")):
        if name not in tensors:
            continue
        scale, shift = tensors[name].chunk(2)
        tensors[name] = torch.cat([shift, scale])
    return tensors
