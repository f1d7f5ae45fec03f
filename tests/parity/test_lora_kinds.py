"""LoRAs of every kind and layout give what PEFT gives, or what the formula gives in double precision."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.test_lora import (
    Case,
    check,
    flux2_case,
    flux_case,
    krea2_case,
    qwen_image21_case,
    qwen_image_case,
    sd3_case,
    z_image_case,
)
from tests.parity.transformers import relative_error

CASES = {
    "SD3": sd3_case,
    "FLUX": flux_case,
    "FLUX.2": flux2_case,
    "Krea 2": krea2_case,
    "Qwen-Image": qwen_image_case,
    "Qwen-Image 2.1": qwen_image21_case,
    "Z-Image": z_image_case,
}
WITHOUT_BIASES = ("FLUX.2", "Krea 2", "Qwen-Image 2.1", "Z-Image")
TARGETS = {
    "SD3": r".*(attn\.to_q|attn\.to_v|norm1\.linear|ff\.net\.2|pos_embed\.proj)",
    "FLUX": r".*(attn\.to_q|attn\.to_out\.0|single_transformer_blocks\.\d\.proj_out|norm_out\.linear)",
    "FLUX.2": r".*(attn\.to_q|ff\.linear_out|attn\.to_qkv_mlp_proj|single_stream_modulation\.linear)",
    "Krea 2": r".*(attn\.to_q|attn\.to_gate|ff\.down|text_fusion\.projector|time_mod_proj)",
    "Qwen-Image": r".*(attn\.to_q|attn\.to_add_out|img_mlp\.net\.2|txt_mod\.1|norm_out\.linear)",
    "Qwen-Image 2.1": r".*(attn\.to_q|attn\.to_out\.0|img_mlp\.gate_layer|txt_in\.in_layer)",
    "Z-Image": r".*(attention\.to_k|feed_forward\.w2|layers\.\d\.adaLN_modulation\.0)",
}
LINEARS = {family: targets.replace(r"|pos_embed\.proj", "") for family, targets in TARGETS.items()}
KINDS: dict[str, Callable[[str], peft.PeftConfig]] = {
    "LoRA": lambda family: peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=TARGETS[family],
        alpha_pattern={r"to_[qk]": 2, "net.2": 7},
        rank_pattern={"to_[qv]": 2},
    ),
    "rank-stabilized": lambda family: peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=TARGETS[family]
    ),
    "biases": lambda family: peft.LoraConfig(
        r=3, lora_alpha=5, lora_bias=True, target_modules=LINEARS[family]
    ),
    "DoRA": lambda family: peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=TARGETS[family]),
    "LoHa": lambda family: peft.LoHaConfig(
        r=3, alpha=5, target_modules=TARGETS[family], alpha_pattern={"to_q": 2}
    ),
    "LoKr": lambda family: peft.LoKrConfig(r=3, alpha=5, target_modules=LINEARS[family], decompose_factor=4),
    "LoKr of products": lambda family: peft.LoKrConfig(
        r=2, alpha=5, target_modules=LINEARS[family], decompose_both=True
    ),
    "LoKr of whole factors": lambda family: peft.LoKrConfig(r=100, alpha=50, target_modules=LINEARS[family]),
}


def trained(case: Case, config: peft.PeftConfig, folder: Path) -> Tensor:
    """The velocity of diffusers' transformer with an adapter of random numbers, which PEFT saves."""
    generator = torch.Generator().manual_seed(3)
    model: Any = peft.get_peft_model(copy.deepcopy(case.theirs), config)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            noise = torch.randn(parameter.shape, generator=generator)
            magnitude = "magnitude" in name
            parameter.data = parameter.data * (1 + 0.3 * noise) if magnitude else 0.3 * noise
    model.save_pretrained(folder)
    return case.velocity(model.base_model.model, case.given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", CASES)
def test_what_peft_saved_gives_what_it_gives(family: str, kind: str, tmp_path: Path) -> None:
    case = CASES[family]()
    expected = trained(case, KINDS[kind](family), tmp_path)

    if kind == "biases" and family in WITHOUT_BIASES:  # whose linears have none to fuse them with
        assert relative_error(case.in_a_pass(tmp_path / "adapter_model.safetensors", 1), expected) <= 1e-5
    else:
        check(case, tmp_path / "adapter_model.safetensors", 1, expected)


def merged(case: Case, changed: dict[str, Tensor]) -> Tensor:
    """diffusers' velocity with other weights, by their names."""
    theirs = copy.deepcopy(case.theirs)
    theirs.load_state_dict({name: tensor.float() for name, tensor in changed.items()}, strict=False)
    return case.velocity(theirs, case.given)


def weights(case: Case, *names: str) -> list[Tensor]:
    state = case.theirs.state_dict()
    return [state[name].double() for name in names]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


QKV = [f"transformer_blocks.1.attn.to_{part}.weight" for part in "qkv"]
FUSED = "lycoris_double_blocks_1_img_attn_qkv"


def test_lycoris_kinds_of_a_fused_module(tmp_path: Path) -> None:
    case, width = flux_case(), 48
    lora = {"lokr_w1": noise(6, 4), "lokr_w2_a": noise(24, 2, seed=1), "lokr_w2_b": noise(2, 12, seed=2)}
    lora |= {"alpha": torch.tensor(4.0)}
    save_file({f"{FUSED}.{name}": tensor for name, tensor in lora.items()}, tmp_path / "a.safetensors")
    w1, a, b = (lora[name].double() for name in ("lokr_w1", "lokr_w2_a", "lokr_w2_b"))
    delta = 0.7 * torch.kron(w1, 4 / 2 * a @ b)

    changed = zip(QKV, weights(case, *QKV), delta.split(width), strict=True)
    check(case, tmp_path / "a.safetensors", 0.7, merged(case, {name: w + part for name, w, part in changed}))


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_a_dora_of_a_fused_module_scales_rows_or_columns(axis: str, tmp_path: Path) -> None:
    """LyCORIS and OneTrainer measure columns by default; weights other than 1 go part of the way."""
    case, width = flux_case(), 48
    down, up = noise(4, width), noise(3 * width, 4, seed=1)
    base = torch.cat(weights(case, *QKV))
    dim = 1 if axis == "rows" else 0
    scale = base.norm(dim=dim, keepdim=True).float()
    scale = scale * (1 + noise(*scale.shape, seed=2))
    lora = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0), "dora_scale": scale}
    name = "lora_unet_double_blocks_1_img_attn_qkv"
    save_file({f"{name}.{key}": tensor for key, tensor in lora.items()}, tmp_path / "a.safetensors")
    whole = base + 2 / 4 * up.double() @ down.double()
    final = whole * scale.double() / whole.norm(dim=dim, keepdim=True)
    final = base + 0.6 * (final - base)

    changed = dict(zip(QKV, final.split(width), strict=True))
    check(case, tmp_path / "a.safetensors", 0.6, merged(case, changed))


def test_differences_of_weights_biases_and_norms(tmp_path: Path) -> None:
    case, width, head = flux_case(), 48, 8
    head = len(weights(case, "transformer_blocks.0.attn.norm_q.weight")[0])
    lora = {
        "diffusion_model.double_blocks.1.img_attn.qkv.diff": noise(3 * width, width),
        "diffusion_model.double_blocks.1.img_attn.qkv.diff_b": noise(3 * width, seed=1),
        "lora_unet_double_blocks_0_img_attn_norm_query_norm.w_norm": noise(head, seed=2),
        "lora_unet_double_blocks_0_img_attn_norm_query_norm.b_norm": torch.zeros(head),
        "lora_unet_nothing.diff_b": torch.zeros(3),
    }
    save_file(lora, tmp_path / "a.safetensors")
    diff, bias, norm, *_ = (tensor.double() for tensor in lora.values())
    biases = [name.replace("weight", "bias") for name in QKV]
    changed = dict(zip(QKV, diff.split(width), strict=True)) | dict(
        zip(biases, bias.split(width), strict=True)
    )
    changed |= {"transformer_blocks.0.attn.norm_q.weight": norm}
    changed = {name: weights(case, name)[0] - 1.5 * change for name, change in changed.items()}

    check(case, tmp_path / "a.safetensors", -1.5, merged(case, changed))


def test_xlabs_layout_gives_what_diffusers_gives(tmp_path: Path) -> None:
    case, width = flux_case(), 48
    shapes = {
        "double_blocks.0.processor.qkv_lora1": (3 * width, width),
        "double_blocks.0.processor.qkv_lora2": (3 * width, width),
        "double_blocks.1.processor.proj_lora1": (width, width),
        "double_blocks.1.processor.proj_lora2": (width, width),
        "single_blocks.0.processor.qkv_lora": (3 * width, width),
        "single_blocks.1.processor.proj_lora": (width, 5 * width),
    }
    lora = {}
    for index, (name, (rows, columns)) in enumerate(shapes.items()):
        lora |= {f"{name}.down.weight": noise(4, columns, seed=index)}
        lora |= {f"{name}.up.weight": noise(rows, 4, seed=index + 10)}
    save_file(lora, tmp_path / "a.safetensors")

    check(case, tmp_path / "a.safetensors", 0.8, case.with_lora(dict(lora), 0.8))


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize(
    "spelling",
    [
        "base_model.model.{}.lora_A.default.weight",
        "base_model.model.transformer.{}.lora_A.weight",
        "base_model.model.{}.lora_A.my-style_2.weight",
        "model.diffusion_model.{}.lora_down.weight",
        "diffusion_model.{}.lora.down.weight",
        "transformer.{}.lora_linear_layer.down.weight",
        "lora_transformer_{_}.lora_down.weight",
        "lora_unet_{_}.lora_down.weight",
        "lora_unet__{_}.lora_down.weight",
        "lycoris_{_}.lora_down.weight",
        "{}.lora.down.weight",
    ],
)
def test_every_spelling_of_a_name_is_the_same_module(family: str, spelling: str, tmp_path: Path) -> None:
    case = CASES[family]()
    block = "layers" if family == "Z-Image" else "transformer_blocks"
    module = f"{block}.0.{'attention' if family == 'Z-Image' else 'attn'}.to_out.0"
    (weight,) = weights(case, f"{module}.weight")
    down, up = noise(4, weight.shape[1]), noise(len(weight), 4, seed=1)
    down_key = spelling.replace("{_}", module.replace(".", "_")).replace("{}", module)
    up_key = down_key.replace("lora_A", "lora_B").replace("down", "up")
    save_file({down_key: down, up_key: up}, tmp_path / "a.safetensors")

    expected = merged(case, {f"{module}.weight": weight + up.double() @ down.double()})
    assert relative_error(case.in_a_pass(tmp_path / "a.safetensors", 1), expected) <= 1e-5


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("layers.0.attention.out", "layers.0.attention.to_out.0"),
        ("layers.0.attention.to.q", "layers.0.attention.to_q"),
        ("final_layer.linear", "all_final_layer.2-1.linear"),
        ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
        ("x_embedder", "all_x_embedder.2-1"),
        ("cap_embedder.1", "cap_embedder.1"),
    ],
)
def test_z_images_own_names(theirs: str, ours: str, tmp_path: Path) -> None:
    case = z_image_case()
    (weight,) = weights(case, f"{ours}.weight")
    lora = {f"{theirs}.diff": noise(*weight.shape)}
    save_file(lora, tmp_path / "a.safetensors")

    expected = merged(case, {f"{ours}.weight": weight + lora[f"{theirs}.diff"].double()})
    assert relative_error(case.in_a_pass(tmp_path / "a.safetensors", 1), expected) <= 1e-5


def test_diffusers_record_of_a_dora_is_read(tmp_path: Path) -> None:
    case = sd3_case()
    expected = trained(case, KINDS["DoRA"]("SD3"), tmp_path)
    lora = {
        name.replace("base_model.model.", "transformer."): tensor
        for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    record = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    (tmp_path / "loras").mkdir()
    save_file(lora, tmp_path / "loras" / "a.safetensors", {"lora_adapter_metadata": record})

    check(case, tmp_path / "loras" / "a.safetensors", 1, expected)
