"""What `up` and `generate` pass on to the services that they start."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from triptych.compute.thread import CORES_LOCK
from triptych.errors import CheckpointError, StartError
from triptych_coordinator.settings import CoordinatorSettings
from triptych_local.running.programs import Addresses, fused_program, split_programs
from triptych_local.running.settings import ModelChoice, Replicas

COMMIT = "1234567890123456789012345678901234567890"
ADDRESSES = Addresses.on_ports(50050)


def test_all_services_are_told_of_the_same_model() -> None:
    choice = ModelChoice(model="file.safetensors", revision="v1", base="org/name", offline=True)
    programs = [*split_programs(ADDRESSES, choice), fused_program(ADDRESSES, choice)]
    words = ["--model", "file.safetensors", "--revision", "v1", "--offline", "--base", "org/name"]
    assert all(program.options[: len(words)] == words for program in programs)


def test_a_branch_is_pinned_to_its_commit(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_checkpoint, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    pinned = ModelChoice(model="org/tiny", offline=True).pinned()
    assert pinned == ModelChoice(model="org/tiny", revision=COMMIT, offline=True)
    assert pinned.pinned() == pinned


def test_a_folder_has_nothing_to_pin(tiny_checkpoint: Path) -> None:
    for choice in (ModelChoice(), ModelChoice(model=str(tiny_checkpoint))):
        assert choice.pinned() == choice
    with pytest.raises(CheckpointError, match="neither a known model nor a folder"):
        ModelChoice(model="/no/such/model").pinned()


def test_single_stages_on_a_cpu_compute_in_turns() -> None:
    addresses = Addresses.on_ports(50050)
    *stages, coordinator = split_programs(addresses, ModelChoice())
    assert len({program.environment[CORES_LOCK] for program in stages}) == 1
    assert not coordinator.environment
    assert not any(p.environment for p in split_programs(addresses, ModelChoice(device="cuda:0")))


def test_each_stage_has_as_many_processes_as_it_is_told_and_the_coordinator_knows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    addresses = Addresses.on_ports(50050, Replicas(denoisers=3, vae_codecs=2))
    *stages, coordinator = split_programs(addresses, ModelChoice())
    assert [(program.name, program.address[-5:]) for program in stages] == [
        ("text encoder", "50051"),
        ("denoiser", "50052"),
        ("denoiser 2", "50054"),
        ("denoiser 3", "50055"),
        ("VAE codec", "50053"),
        ("VAE codec 2", "50056"),
    ]
    assert [program.environment.get("OMP_NUM_THREADS") for program in stages] == [
        "7",
        "2",
        "2",
        "2",
        "3",
        "3",
    ]
    told = CoordinatorSettings.model_validate(
        {
            word.removeprefix("--").replace("-", "_"): value
            for word, value in zip(coordinator.options[::2], coordinator.options[1::2], strict=True)
        }
    )
    assert told.denoiser == "127.0.0.1:50052,127.0.0.1:50054,127.0.0.1:50055"


def test_there_must_be_ports_for_all() -> None:
    assert Addresses.on_ports(65531, Replicas(denoisers=2)).stages[1] == "127.0.0.1:65533,127.0.0.1:65535"
    with pytest.raises(StartError, match="there are not 5 ports for the stages after port 65531"):
        Addresses.on_ports(65531, Replicas(denoisers=3))
