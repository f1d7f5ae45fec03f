"""What `up` and `generate` pass on to the services that they start."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from triptych.checkpoints import CheckpointError
from triptych_local.local import Addresses, ModelChoice, fused_program, split_programs

COMMIT = "1234567890123456789012345678901234567890"
ADDRESSES = Addresses.on_ports(50050)


def test_all_services_are_told_of_the_same_model() -> None:
    choice = ModelChoice("file.safetensors", revision="v1", base="org/name", offline=True)
    programs = [*split_programs(ADDRESSES, choice), fused_program(ADDRESSES, choice)]
    words = ["--model", "file.safetensors", "--revision", "v1", "--base", "org/name", "--offline"]
    assert all(program.options[: len(words)] == words for program in programs)


def test_a_branch_is_pinned_to_its_commit(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_checkpoint, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    pinned = ModelChoice("org/tiny", offline=True).pinned()
    assert pinned == ModelChoice("org/tiny", revision=COMMIT, offline=True)
    assert pinned.pinned() == pinned


def test_a_folder_has_nothing_to_pin(tiny_checkpoint: Path) -> None:
    for choice in (ModelChoice(), ModelChoice(str(tiny_checkpoint))):
        assert choice.pinned() == choice
    with pytest.raises(CheckpointError, match="neither a known model nor a folder"):
        ModelChoice("/no/such/model").pinned()
