"""A LoRA gives what diffusers gives with it, in a pass and fused into the weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from tests.parity import test_flux2_transformer as flux2_tests
from tests.parity import test_flux3_transformer as flux3_tests
from tests.parity import test_flux_transformer as flux_tests
from tests.parity import test_krea2_transformer as krea2_tests
from tests.parity import test_qwen_image21_transformer as qwen_image21_tests
from tests.parity import test_qwen_image_transformer as qwen_image_tests
from tests.parity import test_sd3_transformer as sd3_tests
from tests.parity import test_z_image_transformer as z_image_tests
from tests.parity.loras import RANK, delta, kohya_lora, peft_lora, written
from tests.parity.transformers import relative_error
from triptych.compute.lora_changes import added
from triptych.compute.lora_files import Modules, read_lora_file
from triptych.compute.lora_fusing import FusedTensors
from triptych.compute.lora_placing import place, weights_of
from triptych_denoiser.models import modules_in
from triptych_denoiser.models.flux import FluxTransformer
from triptych_denoiser.models.flux2 import Flux2Transformer
from triptych_denoiser.models.flux3 import Flux3Transformer
from triptych_denoiser.models.krea2 import Krea2Transformer
from triptych_denoiser.models.loading import build
from triptych_denoiser.models.qwen_image import QwenImageTransformer
from triptych_denoiser.models.qwen_image21 import QwenImage21Transformer
from triptych_denoiser.models.sd3 import SD3Transformer
from triptych_denoiser.models.transformer import Transformer
from triptych_denoiser.models.z_image import ZImageTransformer

reference_library: Any = diffusers  # most of it has no types


@dataclass(frozen=True)
class Case:
    """A small transformer of diffusers, the pipeline that loads its LoRAs, and its velocity."""

    family: type[Transformer]
    theirs: Any
    pipeline: Any
    given: dict[str, Tensor]
    velocity: Callable[[Any, dict[str, Tensor]], Tensor]

    def modules(self) -> Modules:
        return modules_in(type(self.theirs).__name__, dict(self.theirs.config))

    def with_lora(self, lora: dict[str, Tensor] | Path, weight: float) -> Tensor:
        """diffusers' velocity."""
        theirs = copy.deepcopy(self.theirs)
        loaded, metadata = self.pipeline.lora_state_dict(lora, return_lora_metadata=True)
        alphas = {"network_alphas": None} if self.pipeline is reference_library.FluxPipeline else {}
        # The conversion of kohya's layout leaves the prefix out where diffusers would then skip the module.
        loaded = {f"transformer.{name.removeprefix('transformer.')}": loaded[name] for name in loaded}
        self.pipeline.load_lora_into_transformer(
            loaded, transformer=theirs, adapter_name="one", metadata=metadata, **alphas
        )
        theirs.set_adapters("one", weight)
        return self.velocity(theirs, self.given)

    def in_a_pass(self, path: Path, weight: float) -> Tensor:
        """Our velocity, the LoRA added to the products."""
        model = build(self.family, dict(self.theirs.config), self.theirs.state_dict(), "cpu", torch.float32)
        lora = place(read_lora_file(path, self.modules()), self.modules().places, weights_of(model))
        before = model(**self.given)
        with added(model, ((lora, weight),)):
            velocity: Tensor = model(**self.given)
        assert torch.equal(model(**self.given), before)
        return velocity

    def fused(self, path: Path, weight: float) -> Tensor:
        """Our velocity, the LoRA fused into the weights."""
        tensors = FusedTensors(self.theirs.state_dict(), [(read_lora_file(path, self.modules()), weight)])
        velocity: Tensor = build(self.family, dict(self.theirs.config), tensors, "cpu", torch.float32)(
            **self.given
        )
        return velocity


@torch.inference_mode()
def sd3_velocity(theirs: Any, given: dict[str, Tensor]) -> Tensor:
    timestep = 1000 * given["sigma"]
    return theirs(given["latents"], given["sequence"], given["pooled"], timestep, return_dict=False)[0]


def sd3_case() -> Case:
    config = sd3_tests.SMALL | {"num_layers": 2, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    given = sd3_tests.inputs(config, 2, 8, 6)
    pipeline = reference_library.StableDiffusion3Pipeline
    return Case(SD3Transformer, sd3_tests.reference(config), pipeline, given, sd3_velocity)


def flux_case() -> Case:
    config = flux_tests.SMALL | {"guidance_embeds": True}
    return Case(
        FluxTransformer,
        flux_tests.reference(config),
        reference_library.FluxPipeline,
        flux_tests.inputs(config, 2, 8, 6),
        flux_tests.expected_velocity,
    )


def flux2_case() -> Case:
    config = flux2_tests.SMALL
    return Case(
        Flux2Transformer,
        flux2_tests.reference(config),
        reference_library.Flux2KleinPipeline,
        flux2_tests.inputs(config, 2, 4, 3),
        flux2_tests.expected_velocity,
    )


def flux3_case() -> Case:
    config = flux3_tests.SMALL | {"flow_map": True}
    return Case(
        Flux3Transformer,
        flux3_tests.reference(config),
        reference_library.loaders.Flux3LoraLoaderMixin,
        flux3_tests.inputs(config, 2, 4, 3, pictures=[(2, 5)]),
        flux3_tests.expected_velocity,
    )


def krea2_case() -> Case:
    config = krea2_tests.SMALL
    return Case(
        Krea2Transformer,
        krea2_tests.reference(config),
        reference_library.Krea2Pipeline,
        krea2_tests.inputs(config, 2, 4, 6),
        krea2_tests.expected_velocity,
    )


def qwen_image_case() -> Case:
    config = qwen_image_tests.SMALL
    return Case(
        QwenImageTransformer,
        qwen_image_tests.reference(config),
        reference_library.QwenImagePipeline,
        qwen_image_tests.inputs(config, 2, 4, 6),
        qwen_image_tests.expected_velocity,
    )


def qwen_image21_case() -> Case:
    config = qwen_image21_tests.SMALL
    return Case(
        QwenImage21Transformer,
        qwen_image21_tests.reference(config),
        reference_library.QwenImage21Pipeline,
        qwen_image21_tests.inputs(config, 2, 4, 6),
        qwen_image21_tests.expected_velocity,
    )


def z_image_case() -> Case:
    config = z_image_tests.SMALL
    return Case(
        ZImageTransformer,
        z_image_tests.reference(config),
        reference_library.ZImagePipeline,
        z_image_tests.inputs(config, 2, 8, 6),
        z_image_tests.expected_velocity,
    )


CASES = {
    "SD3": sd3_case,
    "FLUX": flux_case,
    "FLUX.2": flux2_case,
    "FLUX.3": flux3_case,
    "Krea 2": krea2_case,
    "Qwen-Image": qwen_image_case,
    "Qwen-Image 2.1": qwen_image21_case,
    "Z-Image": z_image_case,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def check(case: Case, path: Path, weight: float, expected: Tensor) -> None:
    """Both ways are the expected one, and far from what there is without the LoRA."""
    assert relative_error(case.velocity(case.theirs, case.given), expected) >= 0.05
    assert relative_error(case.in_a_pass(path, weight), expected) <= 1e-5
    assert relative_error(case.fused(path, weight), expected) <= 1e-5


def test_a_lora_of_every_linear_gives_what_diffusers_gives(case: Case, tmp_path: Path) -> None:
    lora = peft_lora(case.theirs)
    path = written(tmp_path / "lora.safetensors", lora, "transformer.")

    check(case, path, 0.8, case.with_lora({f"transformer.{name}": lora[name] for name in lora}, 0.8))


def test_names_may_lack_the_prefix(case: Case, tmp_path: Path) -> None:
    lora = peft_lora(case.theirs, only="attention" if "Z" in type(case.theirs).__name__ else "attn")
    velocities = [
        case.in_a_pass(written(tmp_path / "lora.safetensors", lora, prefix), 1)
        for prefix in ("transformer.", "diffusion_model.", "")
    ]

    assert all(torch.equal(velocity, velocities[0]) for velocity in velocities[1:])


def test_a_lora_on_queries_alone_touches_a_third(tmp_path: Path) -> None:
    case = flux_case()
    lora = peft_lora(case.theirs, only="to_q")
    path = written(tmp_path / "lora.safetensors", lora, "transformer.")

    check(case, path, -1.5, case.with_lora({f"transformer.{name}": lora[name] for name in lora}, -1.5))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_trainers_alpha_is_that_of_the_files_metadata(rslora: bool, tmp_path: Path) -> None:
    case = sd3_case()
    lora = peft_lora(case.theirs, only="attn.to_")
    modules = sorted({name.rpartition(".lora_")[0] for name in lora})
    config = {
        "transformer.r": RANK,
        "transformer.lora_alpha": 5,
        "transformer.alpha_pattern": {modules[0]: 1},
        "transformer.use_rslora": rslora,
        "transformer.target_modules": modules,
    }
    path = written(tmp_path / "lora.safetensors", lora, "transformer.", config)

    check(case, path, 1, case.with_lora(path, 1))


def test_alpha_beside_the_tensors_scales_them(tmp_path: Path) -> None:
    case = flux_case()
    lora = peft_lora(case.theirs, only="attn")
    modules = {name.rpartition(".lora_")[0] for name in lora}
    halved = lora | {f"{module}.alpha": torch.tensor(RANK / 2) for module in modules}
    whole = case.fused(written(tmp_path / "whole.safetensors", lora), 0.5)

    expected = case.fused(written(tmp_path / "halved.safetensors", halved), 1)
    assert relative_error(whole, expected) <= 1e-5


def test_kohyas_flux_layout_gives_what_diffusers_gives(tmp_path: Path) -> None:
    case = flux_case()
    width = 48
    blocks = {
        f"double_blocks.{i}.{stream}_{module}": shape
        for i in range(2)
        for stream in ("img", "txt")
        for module, shape in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.0": (4 * width, width),
            "mlp.2": (width, 4 * width),
            "mod.lin": (6 * width, width),
        }.items()
    }
    others = {
        "single_blocks.0.modulation.lin": (3 * width, width),
        "single_blocks.1.linear2": (width, 5 * width),
        "img_in": (width, 16),
        "txt_in": (width, 40),
        "time_in.in_layer": (width, 256),
        "guidance_in.out_layer": (width, width),
        "vector_in.in_layer": (width, 24),
    }
    lora = kohya_lora(blocks | others, alpha=2.0)
    final = {"final_layer.linear": (16, width), "final_layer.adaLN_modulation.1": (2 * width, width)}
    lora |= kohya_lora(final, alpha=None)  # which diffusers would not read

    check(case, written(tmp_path / "lora.safetensors", lora), 0.7, case.with_lora(lora, 0.7))


def merged(case: Case, deltas: dict[str, Tensor]) -> Tensor:
    """diffusers' velocity with deltas in its weights."""
    theirs = copy.deepcopy(case.theirs)
    for module, change in deltas.items():
        theirs.get_submodule(module).weight.data += change.view_as(theirs.get_submodule(module).weight)
    return case.velocity(theirs, case.given)


def test_kohyas_fused_single_block_is_split_by_its_widths(tmp_path: Path) -> None:
    """diffusers splits it by those of FLUX.1 itself, so that here the weights are merged by hand."""
    case, width = flux_case(), 48
    lora = kohya_lora({"single_blocks.1.linear1": (7 * width, width)}, alpha=2.0)
    q, k, v, mlp = delta(lora, "single_blocks.1.linear1").split([width, width, width, 4 * width])
    block = "single_transformer_blocks.1"
    deltas = {"attn.to_q": q, "attn.to_k": k, "attn.to_v": v, "proj_mlp": mlp}

    expected = merged(case, {f"{block}.{module}": change for module, change in deltas.items()})
    check(case, written(tmp_path / "lora.safetensors", lora), 1, expected)


FLUX2_BLOCKS: dict[str, tuple[int, int]] = {
    **{
        f"double_blocks.{i}.{stream}_{module}": shape
        for i in range(2)
        for stream in ("img", "txt")
        for module, shape in {
            "attn.qkv": (3 * 48, 48),
            "attn.proj": (48, 48),
            "mlp.0": (6 * 48, 48),
            "mlp.2": (48, 3 * 48),
        }.items()
    },
    "single_blocks.0.linear1": (9 * 48, 48),
    "single_blocks.1.linear2": (48, 4 * 48),
    "img_in": (48, 16),
    "txt_in": (48, 40),
    "time_in.in_layer": (48, 256),
}


def test_kohyas_flux2_layout_gives_what_diffusers_gives(tmp_path: Path) -> None:
    case = flux2_case()
    lora = kohya_lora(FLUX2_BLOCKS, alpha=2.0)

    check(case, written(tmp_path / "lora.safetensors", lora), 0.7, case.with_lora(lora, 0.7))


def test_the_authors_flux2_layout_gives_what_diffusers_gives(tmp_path: Path) -> None:
    case = flux2_case()
    modulations = {
        "double_stream_modulation_img.lin": (6 * 48, 48),
        "double_stream_modulation_txt.lin": (6 * 48, 48),
        "single_stream_modulation.lin": (3 * 48, 48),
        "final_layer.linear": (16, 48),
    }
    generator = torch.Generator().manual_seed(1)
    lora = {
        f"diffusion_model.{name}.lora_{part}.weight": 0.3 * torch.randn(shape, generator=generator)
        for name, (rows, columns) in (FLUX2_BLOCKS | modulations).items()
        for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }

    check(case, written(tmp_path / "lora.safetensors", lora), 0.3, case.with_lora(lora, 0.3))


FLUX3_MODULES: dict[str, tuple[int, int]] = {
    **{f"content_mode_blocks.image.1.{part}_proj": (48, 48) for part in "qkv"},
    "content_mode_blocks.image_cond.0.attn_out": (48, 48),
    "txt_mode_blocks.1.mlp_in": (288, 48),
    "txt_mode_blocks.0.mlp_out": (48, 144),
    **{f"single_blocks.2.{part}_proj": (48, 48) for part in "qkv"},
    "single_blocks.0.attn_out": (48, 48),
    "single_blocks.1.mlp_in": (288, 48),
    "single_blocks.1.mlp_out": (48, 144),
}


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_the_authors_flux3_layout_gives_what_diffusers_gives(prefix: str, tmp_path: Path) -> None:
    case, generator = flux3_case(), torch.Generator().manual_seed(1)
    lora = {
        f"{prefix}{name}.lora_{part}.weight": 0.3 * torch.randn(shape, generator=generator)
        for name, (rows, columns) in FLUX3_MODULES.items()
        for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }

    theirs = {f"diffusion_model.{name.removeprefix(prefix)}": lora[name] for name in lora}
    check(case, written(tmp_path / "lora.safetensors", lora), 0.3, case.with_lora(theirs, 0.3))


def test_a_lora_of_flux3s_other_modules_changes_what_the_authors_call_so(tmp_path: Path) -> None:
    """diffusers' conversion of LoRAs does not know them: merged by hand."""
    case = flux3_case()
    names = {
        "emb_in.image": ("x_embedders.image", (48, 16)),
        "emb_in.image_cond": ("x_embedders.image_cond", (48, 16)),
        "txt_in": ("context_embedder", (48, 40)),
        "time_in.in_layer": ("timestep_embedder.linear_1", (48, 256)),
        "ref_time_in.out_layer": ("target_timestep_embedder.linear_2", (48, 48)),
        "early_stream_modulations.txt.lin": ("early_stream_modulations.txt.linear", (144, 48)),
        "single_stream_modulations.image_cond.lin": (
            "single_stream_modulations.image_cond.linear",
            (144, 48),
        ),
        "final_layer.image.linear": ("proj_out", (16, 48)),
        "final_layer.image.adaLN_modulation.1": ("norm_out.linear", (96, 48)),
    }
    lora = kohya_lora({name: shape for name, (_, shape) in names.items()}, alpha=2.0)
    deltas = {ours: delta(lora, name) for name, (ours, _) in names.items()}
    deltas["norm_out.linear"] = torch.cat(deltas["norm_out.linear"].chunk(2)[::-1])

    check(case, written(tmp_path / "lora.safetensors", lora), 1, merged(case, deltas))


KREA2_MODULES: dict[str, tuple[int, int]] = {
    **{f"blocks.1.attn.{module}": (32, 32) for module in ("wq", "wo", "gate")},
    **{f"blocks.0.attn.{module}": (16, 32) for module in ("wk", "wv")},
    **{f"blocks.1.mlp.{module}": (48, 32) for module in ("gate", "up")},
    "blocks.1.mlp.down": (32, 48),
    "txtfusion.layerwise_blocks.1.attn.wq": (24, 24),
    "txtfusion.refiner_blocks.0.mlp.gate": (40, 24),
    "txtfusion.projector": (1, 3),
    "first": (32, 16),
    "last.linear": (16, 32),
    "tmlp.0": (32, 256),
    "tmlp.2": (32, 32),
    "tproj.1": (6 * 32, 32),
    "txtmlp.1": (32, 24),
    "txtmlp.3": (32, 32),
}


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model."])
def test_the_authors_krea2_layout_gives_what_diffusers_gives(prefix: str, tmp_path: Path) -> None:
    case, generator = krea2_case(), torch.Generator().manual_seed(1)
    lora = {
        f"{prefix}{name}.lora_{part}.weight": 0.3 * torch.randn(shape, generator=generator)
        for name, (rows, columns) in KREA2_MODULES.items()
        for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK)))
    }

    check(case, written(tmp_path / "lora.safetensors", lora), 0.3, case.with_lora(lora, 0.3))


def test_a_lora_of_flux2_devs_guidance_gives_what_diffusers_gives(tmp_path: Path) -> None:
    config = flux2_tests.SMALL | {"guidance_embeds": True}
    theirs, given = flux2_tests.reference(config), flux2_tests.inputs(config, 2, 4, 3)
    case = Case(
        Flux2Transformer,
        theirs,
        reference_library.Flux2Pipeline,
        given,
        flux2_tests.expected_velocity,
    )
    generator = torch.Generator().manual_seed(1)
    lora = {
        f"diffusion_model.guidance_in.{layer}.lora_{part}.weight": torch.randn(shape, generator=generator)
        for layer, columns in (("in_layer", 256), ("out_layer", 48))
        for part, shape in (("A", (RANK, columns)), ("B", (48, RANK)))
    }

    check(case, written(tmp_path / "lora.safetensors", lora), 1, case.with_lora(lora, 1))


def linears(case: Case) -> dict[str, tuple[int, int]]:
    """Shapes of the weights of all of a transformer's linears."""
    modules = {name: each for name, each in case.theirs.named_modules() if isinstance(each, nn.Linear)}
    return {name: (each.out_features, each.in_features) for name, each in modules.items()}


def test_kohyas_qwen_image_layout_gives_what_diffusers_gives(tmp_path: Path) -> None:
    """All linears by their own names, with dots as underscores."""
    case = qwen_image_case()
    lora = kohya_lora(linears(case), alpha=2.0)
    of_diffusers = case.with_lora(dict(lora), 0.4)

    check(case, written(tmp_path / "lora.safetensors", lora), 0.4, of_diffusers)


def test_kohyas_qwen_image21_layout_is_its_linears(tmp_path: Path) -> None:
    """By names that diffusers' conversion takes apart wrongly: merged by hand."""
    case = qwen_image21_case()
    lora = kohya_lora(linears(case), alpha=0.5)

    expected = merged(case, {name: delta(lora, name) for name in linears(case)})
    check(case, written(tmp_path / "lora.safetensors", lora), 1, expected)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_lightnings_layout_gives_what_diffusers_gives(prefix: str, tmp_path: Path) -> None:
    """lora_down, lora_up and alpha by diffusers' names: of the blocks alone."""
    case, generator = qwen_image_case(), torch.Generator().manual_seed(1)
    lora = {}
    for name, module in case.theirs.transformer_blocks.named_modules(prefix="transformer_blocks"):
        if isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            lora[f"{prefix}{name}.lora_down.weight"] = 0.3 * torch.randn(RANK, columns, generator=generator)
            lora[f"{prefix}{name}.lora_up.weight"] = 0.3 * torch.randn(rows, RANK, generator=generator)
            lora[f"{prefix}{name}.alpha"] = torch.tensor(2.0)

    check(case, written(tmp_path / "lora.safetensors", lora), 0.4, case.with_lora(dict(lora), 0.4))


def test_node_editors_fused_names_are_qwen_image21s_products(tmp_path: Path) -> None:
    case, name = qwen_image21_case(), "transformer_blocks.0.img_mlp.gate_up"
    lora = kohya_lora({name: (4 * 48, 48)}, alpha=2.0)
    gate, up = delta(lora, name).chunk(2)

    block = "transformer_blocks.0.img_mlp"
    expected = merged(case, {f"{block}.gate_layer": gate, f"{block}.proj": up})
    check(case, written(tmp_path / "lora.safetensors", lora), 1, expected)


def test_a_lora_of_flux2s_last_modulation_has_its_halves_swapped(tmp_path: Path) -> None:
    """As the checkpoint has them, which diffusers' conversion of LoRAs forgets: merged by hand."""
    case, name = flux2_case(), "final_layer.adaLN_modulation.1"
    lora = kohya_lora({name: (2 * 48, 48)}, alpha=2.0)
    shift, scale = delta(lora, name).chunk(2)

    expected = merged(case, {"norm_out.linear": torch.cat([scale, shift])})
    check(case, written(tmp_path / "lora.safetensors", lora), 1, expected)


def test_kohyas_sd3_layout_gives_the_weights_of_diffusers_conversion(tmp_path: Path) -> None:
    case, width = sd3_case(), 48
    square, qkv = (width, width), (3 * width, width)
    lora = kohya_lora(
        {
            "x_embedder.proj": (width, 16),
            "y_embedder.mlp.0": (width, 56),
            "t_embedder.mlp.2": square,
            "joint_blocks.0.x_block.attn.qkv": qkv,
            "joint_blocks.0.x_block.attn2.proj": square,
            "joint_blocks.0.x_block.adaLN_modulation.1": (9 * width, width),
            "joint_blocks.1.context_block.attn.qkv": qkv,
            "joint_blocks.1.context_block.adaLN_modulation.1": (2 * width, width),
            "joint_blocks.0.context_block.mlp.fc1": (4 * width, width),
            "joint_blocks.1.x_block.mlp.fc2": (width, 4 * width),
            "final_layer.adaLN_modulation.1": (2 * width, width),
        },
        alpha=2.0,
    )

    def change(name: str) -> Tensor:
        return delta(lora, name)

    q, k, v = change("joint_blocks.0.x_block.attn.qkv").chunk(3)
    add_q, add_k, add_v = change("joint_blocks.1.context_block.attn.qkv").chunk(3)
    shift, scale = change("joint_blocks.1.context_block.adaLN_modulation.1").chunk(2)
    final_shift, final_scale = change("final_layer.adaLN_modulation.1").chunk(2)
    expected = merged(
        case,
        {
            "pos_embed.proj": change("x_embedder.proj"),
            "time_text_embed.text_embedder.linear_1": change("y_embedder.mlp.0"),
            "time_text_embed.timestep_embedder.linear_2": change("t_embedder.mlp.2"),
            **{f"transformer_blocks.0.attn.to_{p}": part for p, part in zip("qkv", (q, k, v), strict=True)},
            "transformer_blocks.0.attn2.to_out.0": change("joint_blocks.0.x_block.attn2.proj"),
            "transformer_blocks.0.norm1.linear": change("joint_blocks.0.x_block.adaLN_modulation.1"),
            "transformer_blocks.1.attn.add_q_proj": add_q,
            "transformer_blocks.1.attn.add_k_proj": add_k,
            "transformer_blocks.1.attn.add_v_proj": add_v,
            "transformer_blocks.1.norm1_context.linear": torch.cat([scale, shift]),
            "transformer_blocks.0.ff_context.net.0.proj": change("joint_blocks.0.context_block.mlp.fc1"),
            "transformer_blocks.1.ff.net.2": change("joint_blocks.1.x_block.mlp.fc2"),
            "norm_out.linear": torch.cat([final_scale, final_shift]),
        },
    )
    check(case, written(tmp_path / "lora.safetensors", lora), 1, expected)


def test_z_images_fused_names_are_its_projections(tmp_path: Path) -> None:
    case, width = z_image_case(), z_image_tests.SMALL["dim"]
    lora = kohya_lora({"layers.0.attention.qkv": (3 * width, width)}, 2.0)
    lora |= kohya_lora({"context_refiner.0.attention.out": (width, width)}, 2.0)
    parts = delta(lora, "layers.0.attention.qkv").chunk(3)
    deltas = {f"layers.0.attention.to_{p}": part for p, part in zip("qkv", parts, strict=True)}
    deltas["context_refiner.0.attention.to_out.0"] = delta(lora, "context_refiner.0.attention.out")

    check(case, written(tmp_path / "lora.safetensors", lora), 1, merged(case, deltas))


def test_several_loras_add_up(case: Case, tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{seed}.safetensors", peft_lora(case.theirs, seed, rank))
        for seed, rank in ((1, 2), (2, 5))
    ]
    files = [read_lora_file(path, case.modules()) for path in paths]
    weights, config, tensors = (0.5, -0.25), dict(case.theirs.config), case.theirs.state_dict()
    model = build(case.family, config, tensors, "cpu", torch.float32)
    placed = [place(file, case.modules().places, weights_of(model)) for file in files]
    fused = FusedTensors(tensors, list(zip(files, weights, strict=True)))

    with added(model, tuple(zip(placed, weights, strict=True))):
        velocity = model(**case.given)

    expected = build(case.family, config, fused, "cpu", torch.float32)(**case.given)
    assert relative_error(velocity, expected) <= 1e-5
