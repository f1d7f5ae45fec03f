"""What a LoRA file may hold, and what is said of one that does not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.denoiser.loras import MLP, Q, random_lora, written
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.lora_changes import LoraFile
from triptych.compute.lora_files import Modules, read_lora_file
from triptych.compute.lora_fusing import FusedTensors
from triptych.compute.lora_placing import place
from triptych.errors import CheckpointError
from triptych_denoiser.models import modules_of

KOHYA = "lora_unet_joint_blocks_0_x_block_attn_qkv"


@pytest.fixture
def modules(tiny_checkpoint: Path) -> Modules:
    return modules_of(open_checkpoint(str(tiny_checkpoint)))


def applied(file: LoraFile) -> set[str]:
    """diffusers' modules that it changes."""
    return {module for change in file.changes for module, _ in change.targets}


def test_text_encoder_parts_are_left_to_their_service(modules: Modules, tmp_path: Path) -> None:
    lora = random_lora(1)
    others = {
        "text_encoder.text_model.final_layer_norm.lora_A.weight": torch.ones(1, 16),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(()),
    }
    file = read_lora_file(written(tmp_path / "both.safetensors", lora | others), modules)
    alone = read_lora_file(written(tmp_path / "alone.safetensors", lora), modules)
    theirs = read_lora_file(written(tmp_path / "theirs.safetensors", others), modules)

    assert applied(file) == applied(alone)
    assert (file.warnings, file.for_text_encoders, alone.for_text_encoders) == ((), True, False)
    assert (theirs.changes, theirs.warnings, theirs.for_text_encoders) == ([], (), True)


@pytest.mark.parametrize(
    "others",
    [
        {"transformer.nothing.lora_A.weight": torch.ones(2, 32)},
        {f"{Q}.oft_blocks": torch.ones(2, 2)},
        {"bundle_emb.clip_l": torch.ones(2, 2)},
        {"transformer.nothing.diff_b": torch.ones(2), "transformer.zeros.diff_b": torch.zeros(2)},
        {"x.diff": torch.ones(2).to(torch.float8_e4m3fn), "y.diff": torch.zeros(2).to(torch.float8_e5m2)},
    ],
)
def test_what_fits_nothing_is_named_where_others_fit(
    others: dict[str, Tensor], modules: Modules, tmp_path: Path
) -> None:
    file = read_lora_file(written(tmp_path / "a.safetensors", random_lora(1) | others), modules)

    count = 5 if len(others) == 1 else 6
    assert file.warnings == (
        f"1 of its {count} tensors fit nothing in the transformer and are not applied, "
        f"such as {next(iter(others))}",
    )
    assert len(applied(file)) == 2


def test_a_file_of_which_nothing_fits_is_refused(modules: Modules, tmp_path: Path) -> None:
    lora = {
        "lora_unet_down_blocks_0_attn.lora_down.weight": torch.ones(2, 32),
        "lora_te_x.alpha": torch.ones(()),
    }

    with pytest.raises(
        CheckpointError, match=r"none of its 1 tensors fits, such as .'lora_unet_down_blocks_0"
    ):
        read_lora_file(written(tmp_path / "a.safetensors", lora), modules)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(31)}, "has a magnitude of shape [31], not [32, 1]"),
        ({f"{Q}.lora_B.bias": torch.ones(31)}, "has a bias of shape [31], not [32]"),
        ({f"{Q}.lora_B.two.weight": torch.ones(32, 4)}, f"it has {Q} twice, once as {Q}.lora_B."),
        ({f"{Q}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)}, "lora_A.weight is torch.int8"),
        ({f"{Q}.alpha": torch.tensor(1e39, dtype=torch.float64)}, f"{Q} has values that are not finite"),
        ({f"{Q}.alpha": torch.tensor(torch.nan)}, f"{Q} has an alpha that is not finite"),
        ({f"{Q}.lokr_t2": torch.ones(1)}, f"{Q} is in Tucker form"),
        ({f"{Q}.hada_w1_a": torch.ones(32, 4)}, f"{Q} lacks its hada_w1_b and hada_w2_a and hada_w2_b part"),
        ({f"{Q}.lokr_w1": torch.ones(4, 4)}, f"{Q} lacks its lokr_w2 part"),
        ({f"{Q}.lokr_w1_a": torch.ones(4), f"{Q}.lokr_w1_b": torch.ones(4)}, "Dimension out of range"),
        (
            {f"{Q}.lokr_w1_a": torch.ones(10**6, 1), f"{Q}.lokr_w1_b": torch.ones(1, 10**6)},
            f"{Q} has a lokr_w1 of [1000000, 1000000], which does not divide [32, 32]",
        ),
        ({f"{Q}.diff": torch.ones(32, 32)}, f"{Q} is of several kinds"),
        (
            {f"{MLP}.diff": torch.ones(32, 32), f"{MLP}.lora_A.weight": None, f"{MLP}.lora_B.weight": None},
            "has shapes [32, 32], which do not make [128, 32]",
        ),
        ({f"{Q}.alpha": torch.ones(2)}, f"{Q} has 2 alphas"),
        (
            {f"{Q}.lora_A.weight": torch.ones(4, 31)},
            f"{Q} has shapes [4, 31] and [32, 4], which do not make [32, 32]",
        ),
        ({f"{Q}.lora_B.weight": torch.ones(32, 5)}, f"{Q} has shapes [4, 32] and [32, 5]"),
        ({f"{Q}.lora_B.weight": torch.ones(96, 4)}, f"{Q} has shapes [4, 32] and [96, 4]"),
        (
            {f"{Q}.lora_A.weight": torch.ones(0, 32), f"{Q}.lora_B.weight": torch.ones(32, 0)},
            f"{Q} has rank 0",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(32)}, f"{Q} has shapes [32] and [32, 4]"),
        ({f"{Q}.alpha": torch.tensor(torch.inf)}, f"{Q} has an alpha that is not finite"),
        ({f"{Q}.lora_B.weight": None}, f"{Q} lacks its up part"),
        ({f"{Q}.lora_A.weight": None}, f"{Q} lacks its down part"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Tensor | None], sentence: str, modules: Modules, tmp_path: Path
) -> None:
    lora = {name: tensor for name, tensor in (random_lora(1) | changes).items() if tensor is not None}

    with pytest.raises(CheckpointError) as refused:
        read_lora_file(written(tmp_path / "odd.safetensors", lora), modules)

    assert f"{tmp_path}/odd.safetensors is no LoRA for this transformer: " in str(refused.value)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("same", [True, False])
def test_of_a_fused_and_a_split_form_the_split_one_counts(
    same: bool, modules: Modules, tmp_path: Path
) -> None:
    """Some trainers write both, and mean one."""
    down, up = torch.randn(4, 32), torch.randn(96, 4)
    lora = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    lora |= {f"{Q}.lora_A.weight": down.clone(), f"{Q}.lora_B.weight": up[:32].clone() if same else -up[:32]}
    file = read_lora_file(written(tmp_path / "a.safetensors", lora), modules)

    parts = {module: change for change in file.changes for module, _ in change.targets}
    assert {module.rpartition(".")[2]: change.name for module, change in parts.items()} == {
        "to_q": Q,
        "to_k": KOHYA,
        "to_v": KOHYA,
    }
    said = (
        ()
        if same
        else (
            f"it has transformer_blocks.0.attn.to_q twice, and differently: {Q} is applied, {KOHYA} is not",
        )
    )
    assert file.warnings == said


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ("[1", "its lora_adapter_metadata is no JSON object"),
        ("[1]", "its lora_adapter_metadata is no JSON object"),
        ('{"transformer.lora_alpha": "x"}', "its alpha is 'x', which is no finite number"),
        ('{"transformer.lora_alpha": [2]}', "its alpha is '[2]', which is no finite number"),
        ('{"transformer.lora_alpha": 1e999}', "its alpha is 'inf', which is no finite number"),
        ('{"transformer.lora_alpha": NaN}', "its alpha is 'nan', which is no finite number"),
        ('{"transformer.lora_alpha": true}', "its alpha is 'True', which is no finite number"),
        ('{"transformer.lora_alpha": 1%s}' % ("0" * 400), "which is no finite number"),
        ('{"transformer.lora_alpha": 1e39}', "its alpha is '1e+39', which is no finite number"),
        ('{"transformer.alpha_pattern": 3}', "'int' object has no attribute 'items'"),
        ('{"transformer.alpha_pattern": {"(": 3}}', "'(' in its alpha_pattern is no regular expression"),
        ('{"transformer.alpha_pattern": {"to_q": null}, "transformer.r": "x"}', "its r is 'x'"),
        ('{"transformer.r": 8}', "has rank 4, but its configuration says 8"),
        (
            '{"transformer.r": 4, "transformer.rank_pattern": {"to_q": 2}}',
            "rank 4, but its configuration says 2",
        ),
        ('{"transformer.use_dora": true}', "has no magnitude, but its configuration says use_dora"),
        ('{"transformer.init_lora_weights": "pissa_niter_4"}', "weights that pissa_niter_4 changed"),
    ],
)
def test_a_record_of_the_training_that_makes_no_sense_is_refused(
    record: str, sentence: str, modules: Modules, tmp_path: Path
) -> None:
    save_file(random_lora(1), tmp_path / "a.safetensors", {"lora_adapter_metadata": record})

    with pytest.raises(CheckpointError) as refused:
        read_lora_file(tmp_path / "a.safetensors", modules)
    assert sentence in str(refused.value)


def scales(path: Path, modules: Modules) -> dict[str, float]:
    """How many times up is taken, by the last part of the module's name."""
    lora = {module: random_lora(1)[f"{module}.lora_B.weight"] for module in (Q, MLP)}
    file = read_lora_file(path, modules)
    return {
        change.name.rpartition(".")[2]: round((change.factors[1] / lora[change.name]).mean().item(), 6)
        for change in file.changes
    }


def as_kohya(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for k, v in lora.items()}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"lora_alpha": "1"}, {"to_q": 0.25, "proj": 0.25}),
        ({"lora_alpha": "1", "alpha_pattern": '{"to_.": 2}'}, {"to_q": 0.5, "proj": 0.25}),
        ({"lora_alpha": "1", "use_rslora": "True"}, {"to_q": 0.5, "proj": 0.5}),
        ({"ss_network_alpha": "1.0", "ss_network_dim": "4"}, {"to_q": 1, "proj": 1}),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 2}'}, {"to_q": 0.5, "proj": 0.5}),
        ({"lora_adapter_metadata": '{"text_encoder.lora_alpha": 2}'}, {"to_q": 1, "proj": 1}),
        (
            {
                "lora_adapter_metadata": json.dumps(
                    {
                        "transformer.lora_alpha": 4,
                        "transformer.alpha_pattern": {
                            r"^transformer_blocks\.0\.attn\.to_[qk]": 1,
                            "attn.to_q": 8,
                            "net.0.proj": 2,
                        },
                    }
                )
            },
            {"to_q": 0.25, "proj": 0.5},
        ),
        (
            {
                "lora_adapter_metadata": '{"transformer.lora_alpha": 4, '
                '"transformer.alpha_pattern": {"o_q": 1}}'
            },
            {"to_q": 1, "proj": 1},
        ),
    ],
)
def test_alpha_is_read_of_the_metadata(
    metadata: dict[str, str], expected: dict[str, float], modules: Modules, tmp_path: Path
) -> None:
    save_file(random_lora(1), tmp_path / "a.safetensors", metadata)

    assert scales(tmp_path / "a.safetensors", modules) == expected


def test_kohyas_alpha_of_the_metadata_is_for_files_of_its_layout_that_lost_their_own(
    modules: Modules, tmp_path: Path
) -> None:
    """Conversions to other layouts multiply it in and keep the metadata."""
    lora, metadata = as_kohya(random_lora(1)), {"ss_network_alpha": "1.0"}
    save_file(lora, tmp_path / "lost.safetensors", metadata)
    save_file(lora | {f"{Q}.alpha": torch.tensor(2)}, tmp_path / "has.safetensors", metadata)

    assert scales(tmp_path / "lost.safetensors", modules) == {"to_q": 0.25, "proj": 0.25}
    assert scales(tmp_path / "has.safetensors", modules) == {"to_q": 0.5, "proj": 1}


def test_pefts_configuration_is_that_of_a_file_alone_or_with_its_name(
    modules: Modules, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 2, "alpha_pattern": None})
    )
    first = written(tmp_path / "adapter_model.safetensors", random_lora(1))
    assert scales(first, modules) == {"to_q": 0.5, "proj": 0.5}
    before = read_lora_file(first, modules).identity
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 1}))
    assert read_lora_file(first, modules).identity != before

    second = written(tmp_path / "another.safetensors", random_lora(1))
    assert scales(second, modules) == {"to_q": 1, "proj": 1}
    first.unlink()
    assert scales(second, modules) == {"to_q": 0.25, "proj": 0.25}


def test_a_configuration_that_makes_no_sense_is_refused(modules: Modules, tmp_path: Path) -> None:
    written(tmp_path / "adapter_model.safetensors", random_lora(1))
    for text, sentence in (("{", "adapter_config.json is no JSON"), (" " * 2**20 + "{}", "bytes")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=sentence):
            read_lora_file(tmp_path / "adapter_model.safetensors", modules)


def test_a_bias_that_the_checkpoint_lacks_cannot_be_fused(modules: Modules, tmp_path: Path) -> None:
    file = read_lora_file(written(tmp_path / "a.safetensors", {f"{Q}.diff_b": torch.ones(32)}), modules)

    with pytest.raises(CheckpointError, match=f"--lora: {Q} changes the bias of .*to_q, which has none"):
        FusedTensors({"transformer_blocks.0.attn.to_q.weight": torch.ones(32, 32)}, [(file, 1.0)])


def test_files_that_are_no_safetensors_are_refused(modules: Modules, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04pickle")

    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        read_lora_file(tmp_path / "a.safetensors", modules)


def test_values_that_are_not_finite_are_refused(modules: Modules, tmp_path: Path) -> None:
    lora = random_lora(1)
    lora[f"{Q}.lora_A.weight"][0, 0] = torch.nan

    with pytest.raises(CheckpointError, match="to_q has values that are not finite"):
        read_lora_file(written(tmp_path / "a.safetensors", lora), modules)


def test_values_that_the_models_dtype_cannot_hold_are_refused(modules: Modules, tmp_path: Path) -> None:
    lora = random_lora(1)
    lora[f"{Q}.lora_A.weight"][0, 0] = 1e5
    file = read_lora_file(written(tmp_path / "a.safetensors", lora), modules)

    with pytest.raises(CheckpointError, match=r"qkv has values that are not finite in torch\.float16"):
        place(file, modules.places, lambda module: torch.ones(1, dtype=torch.float16))


def test_a_file_knows_what_is_in_it(modules: Modules, tmp_path: Path) -> None:
    first = read_lora_file(written(tmp_path / "a.safetensors", random_lora(1)), modules)
    again = read_lora_file(
        written(tmp_path / "b.safetensors", load_file(tmp_path / "a.safetensors")), modules
    )
    other = read_lora_file(written(tmp_path / "c.safetensors", random_lora(2)), modules)

    assert first.identity == again.identity != other.identity
