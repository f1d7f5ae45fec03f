"""--offload: weights that wait in the host's memory give the bits of those that are there."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.denoiser import small_families
from tests.denoiser.loras import KINDS, lora_of_kind, random_lora, written
from tests.denoiser.small_families import Config, random_transformer
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.lora_changes import added
from triptych.compute.lora_files import read_lora_file
from triptych.compute.lora_placing import place, weights_of
from triptych.compute.offload import bring
from triptych.compute.quantization import create_quantizer
from triptych.errors import StartError
from triptych_denoiser.assembly import create_servicer
from triptych_denoiser.models import load_transformer, modules_in, modules_of
from triptych_denoiser.models.loading import build
from triptych_denoiser.models.products import like_the_first
from triptych_denoiser.models.transformer import Transformer, blocks
from triptych_denoiser.predictor import Predictor, random_row
from triptych_denoiser.settings import DenoiserSettings

CPU = torch.device("cpu")
FAMILIES: dict[str, Config] = {
    "SD3": {**small_families.SD3, "num_layers": 4},
    "FLUX": small_families.FLUX,
    "FLUX.2": small_families.FLUX2,
    "FLUX.3": small_families.FLUX3,
    "Krea 2": small_families.KREA2,
    "Qwen-Image": small_families.QWEN_IMAGE,
    "Qwen-Image 2.1": small_families.QWEN_IMAGE21,
    "Z-Image": small_families.Z_IMAGE,
}


def predicted(model: Transformer, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The velocities of three passes: each begins with other weights on the device."""
    predictor, generator = Predictor(model, CPU, dtype, 2), torch.Generator().manual_seed(0)
    rows = [random_row(predictor, 8, 8, 9, 1, generator) for _ in range(2)]
    passes = [predictor.predict(rows), predictor.predict(rows[:1]), predictor.predict(rows[1:])]
    return [velocity for each in passes for velocity in each.velocities]


def both(config: Config) -> tuple[Transformer, Transformer]:
    """A transformer, and the same offloaded."""
    resident = random_transformer(config)
    weights = resident.checkpoint_keys()
    return resident, build(type(resident), config, weights, "cpu", torch.float32, offload=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_velocities_have_the_same_bits(family: str) -> None:
    resident, offloaded = both(FAMILIES[family])

    assert all(map(torch.equal, predicted(offloaded), predicted(resident)))
    count = sum(parameter.numel() for parameter in offloaded.parameters())
    assert count == sum(parameter.numel() for parameter in resident.parameters())


def test_skipped_layers_and_a_pass_that_ends_early_leave_the_right_weights() -> None:
    resident, offloaded = both(FAMILIES["SD3"])
    given = {
        "latents": torch.randn(1, 4, 8, 8),
        "sigma": torch.tensor([0.5]),
        "sequence": torch.randn(1, 5, 32),
        "pooled": torch.randn(1, 24),
    }

    def first_alone(before: Tensor, first: Tensor, others: object, modulated: object) -> Tensor:
        return first

    choices: list[dict[str, Any]] = [
        {"skipped_layers": (1, 2)},
        {"reuse": first_alone},
        {"skipped_layers": (0, 3)},
        {"perturbed_layers": (2,)},
        {},
    ]
    with torch.inference_mode():
        for choice in choices:
            assert torch.equal(offloaded(**given, **choice), resident(**given, **choice))


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("none", torch.bfloat16),
        ("int8-dynamic", torch.bfloat16),
        ("int4-weight-only", torch.bfloat16),
    ],
)
def test_quantized_weights_wait_as_they_are(mode: Any, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint("triptych-small")
    resident, offloaded = (
        load_transformer(checkpoint, "cpu", dtype, create_quantizer(mode, CPU, dtype), offload=offload)
        for offload in (False, True)
    )

    assert all(map(torch.equal, predicted(offloaded, dtype), predicted(resident, dtype)))


def test_what_is_on_the_device_are_two_blocks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resident, offloaded = both({**FAMILIES["SD3"], "attention_head_dim": 64, "caption_projection_dim": 128})

    storages = {
        storage.data_ptr(): storage.nbytes()
        for block in blocks(offloaded)
        for storage in (weight.untyped_storage() for weight in block.parameters())
    }
    sizes = [sum(weight.nbytes for weight in block.parameters()) for block in blocks(resident)]
    assert len(storages) == 2
    assert 2 * max(sizes) <= sum(storages.values()) < 2.02 * max(sizes)
    assert "4 blocks of " in caplog.text
    assert f"2 buffers for them take {sum(storages.values()) / 1e9:.3f} GB on cpu" in caplog.text


def test_weights_are_brought_for_who_reads_them_without_a_pass() -> None:
    resident, offloaded = both(FAMILIES["FLUX"])
    weights = dict(resident.named_parameters())

    for path, weight in reversed(list(offloaded.named_parameters())):
        bring(weight)
        assert torch.equal(weight, weights[path])
    for path, module in reversed(list(offloaded.named_modules())):
        if isinstance(module, nn.Linear):
            like_the_first((4, 8), module.weight, module.bias)
            assert torch.equal(module.weight, weights[f"{path}.weight"])


@pytest.mark.parametrize("kind", ["low rank", *KINDS])
def test_loras_are_added_as_elsewhere(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    file = written(
        tmp_path / "lora.safetensors", random_lora(1) if kind == "low rank" else lora_of_kind(kind)
    )
    modules = modules_of(checkpoint)
    velocities = []
    for offload in (False, True):
        model = load_transformer(checkpoint, "cpu", torch.float32, offload=offload)
        lora = place(read_lora_file(file, modules), modules.places, weights_of(model))
        with added(model, ((lora, 0.8),)):
            velocities.append(predicted(model))
        if offload:
            assert not torch.equal(predicted(model)[0], velocities[-1][0])

    assert all(map(torch.equal, *velocities))


@pytest.mark.parametrize("kind", ["DoRA of rows", "DoRA of columns"])
def test_a_lora_that_is_loaded_within_a_pass_changes_nothing_of_it(kind: str, tmp_path: Path) -> None:
    """It needs the model's weights, of blocks that are not there, and another thread computes with those."""
    resident, offloaded = both(FAMILIES["SD3"])
    file = written(tmp_path / "lora.safetensors", lora_of_kind(kind))
    modules = modules_in("SD3Transformer2DModel", FAMILIES["SD3"])
    loras = []

    def load(*_: object) -> None:
        loras.append(place(read_lora_file(file, modules), modules.places, weights_of(offloaded)))

    for block in blocks(offloaded):
        block.register_forward_pre_hook(load)
    assert all(map(torch.equal, predicted(offloaded), predicted(resident)))
    for block in blocks(offloaded):
        block._forward_pre_hooks.popitem()
    with added(
        resident, ((place(read_lora_file(file, modules), modules.places, weights_of(resident)), 0.8),)
    ):
        expected = predicted(resident)
    for lora in loras:
        with added(offloaded, ((lora, 0.8),)):
            assert all(map(torch.equal, predicted(offloaded), expected))


def test_it_is_refused_together_with_compiling(settings: DenoiserSettings) -> None:
    options = settings.model_copy(update={"compile": True, "offload": True})
    with pytest.raises(StartError, match="--compile cannot be used with --offload: a compiled block is one"):
        create_servicer(settings, options)
