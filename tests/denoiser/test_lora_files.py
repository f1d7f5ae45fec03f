"""What a LoRA file may hold, and what is said of one that does not fit."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.denoiser.loras import Q, random_lora, written
from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import CheckpointError
from triptych_denoiser.models import linears_of
from triptych_denoiser.models.lora import Linears, place, read_lora_file

KOHYA = "lora_unet_joint_blocks_0_x_block_attn_qkv"


@pytest.fixture
def linears(tiny_checkpoint: Path) -> Linears:
    return linears_of(open_checkpoint(str(tiny_checkpoint)))


def test_text_encoder_parts_are_left_out_with_a_warning(
    linears: Linears, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = random_lora(1)
    others = {
        "text_encoder.text_model.final_layer_norm.lora_A.weight": torch.ones(1, 16),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(()),
    }
    with caplog.at_level(logging.WARNING):
        file = read_lora_file(written(tmp_path / "both.safetensors", lora | others), linears)

    alone = read_lora_file(written(tmp_path / "alone.safetensors", lora), linears)
    assert file.low_ranks.keys() == alone.low_ranks.keys()
    assert "both.safetensors: its 2 tensors for text encoders are not used" in caplog.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"transformer.nothing.lora_A.weight": torch.ones(2, 32)},
            "1 unknown tensors of 5, such as ['transformer.no",
        ),
        ({f"{Q}.lora_magnitude_vector": torch.ones(32)}, f"such as ['{Q}.lora_magnitude_vector']"),
        ({f"{Q}.lora_B.bias": torch.ones(32)}, f"such as ['{Q}.lora_B.bias']"),
        ({f"{Q}.alpha": torch.ones(2)}, f"such as ['{Q}.alpha']"),
        (
            {f"{Q}.lora_A.weight": torch.ones(4, 31)},
            f"{Q} has shapes [4, 31] and [32, 4], which do not make [32, 32]",
        ),
        ({f"{Q}.lora_B.weight": torch.ones(32, 5)}, f"{Q} has shapes [4, 32] and [32, 5]"),
        ({f"{Q}.lora_B.weight": torch.ones(96, 4)}, f"{Q} has shapes [4, 32] and [96, 4]"),
        (
            {f"{Q}.lora_A.weight": torch.ones(0, 32), f"{Q}.lora_B.weight": torch.ones(32, 0)},
            "shapes [0, 32] and [32, 0]",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(32)}, f"such as ['{Q}.lora_A.weight']"),
        ({f"{Q}.alpha": torch.tensor(torch.inf)}, f"{Q} has values that are not finite"),
        ({f"{Q}.lora_B.weight": None}, f"{Q} lacks its up part"),
        ({f"{Q}.lora_A.weight": None}, f"{Q} lacks its down part"),
        (
            {f"{KOHYA}.lora_down.weight": torch.ones(4, 32), f"{KOHYA}.lora_up.weight": torch.ones(96, 4)},
            "it has transformer_blocks.0.attn.to_q twice",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Tensor | None], sentence: str, linears: Linears, tmp_path: Path
) -> None:
    lora = {name: tensor for name, tensor in (random_lora(1) | changes).items() if tensor is not None}

    with pytest.raises(CheckpointError) as refused:
        read_lora_file(written(tmp_path / "odd.safetensors", lora), linears)

    assert f"{tmp_path}/odd.safetensors is no LoRA for this transformer: " in str(refused.value)
    assert sentence in str(refused.value)


def test_a_lora_of_text_encoders_alone_is_refused(linears: Linears, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it has no tensors for one"):
        read_lora_file(written(tmp_path / "a.safetensors", {"lora_te1_x.alpha": torch.ones(())}), linears)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ("[1", "its lora_adapter_metadata is no JSON object"),
        ("[1]", "its lora_adapter_metadata is no JSON object"),
        ('{"transformer.lora_alpha": "x"}', "could not convert string to float: 'x'"),
        ('{"transformer.lora_alpha": [2]}', "float"),
        ('{"transformer.alpha_pattern": 3}', "'int' object has no attribute 'items'"),
    ],
)
def test_a_record_of_the_training_that_makes_no_sense_is_refused(
    record: str, sentence: str, linears: Linears, tmp_path: Path
) -> None:
    save_file(random_lora(1), tmp_path / "a.safetensors", {"lora_adapter_metadata": record})

    with pytest.raises(CheckpointError) as refused:
        read_lora_file(tmp_path / "a.safetensors", linears)
    assert sentence in str(refused.value)


def test_files_that_are_no_safetensors_are_refused(linears: Linears, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04pickle")

    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        read_lora_file(tmp_path / "a.safetensors", linears)


def test_values_that_are_not_finite_are_refused(linears: Linears, tmp_path: Path) -> None:
    lora = random_lora(1)
    lora[f"{Q}.lora_A.weight"][0, 0] = torch.nan

    with pytest.raises(CheckpointError, match="to_q has values that are not finite"):
        read_lora_file(written(tmp_path / "a.safetensors", lora), linears)


def test_values_that_the_models_dtype_cannot_hold_are_refused(linears: Linears, tmp_path: Path) -> None:
    lora = random_lora(1)
    lora[f"{Q}.lora_A.weight"][0, 0] = 1e5
    file = read_lora_file(written(tmp_path / "a.safetensors", lora), linears)

    with pytest.raises(CheckpointError, match=r"qkv has values that are not finite in torch\.float16"):
        place(file, linears, torch.device("cpu"), torch.float16)


def test_a_file_knows_what_is_in_it(linears: Linears, tmp_path: Path) -> None:
    first = read_lora_file(written(tmp_path / "a.safetensors", random_lora(1)), linears)
    again = read_lora_file(
        written(tmp_path / "b.safetensors", load_file(tmp_path / "a.safetensors")), linears
    )
    other = read_lora_file(written(tmp_path / "c.safetensors", random_lora(2)), linears)

    assert first.identity == again.identity != other.identity
