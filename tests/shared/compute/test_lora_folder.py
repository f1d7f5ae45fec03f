"""Which files of a folder are LoRAs, and by which names."""

import os
from pathlib import Path

import pytest

from triptych.compute.lora_folder import MAX_NAMES, LoraFolder
from triptych.errors import CheckpointError


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_of_folders_have_the_folders_in_their_names(tmp_path: Path) -> None:
    touched(tmp_path, "ink.safetensors", "style/oil paint.safetensors", "style/old/tea.safetensors")
    touched(tmp_path, "notes.txt", ".hidden.safetensors", ".cache/other.safetensors", "style/.x.safetensors")

    files = LoraFolder(tmp_path).files()

    assert list(files) == ["ink", "style/oil paint", "style/old/tea"]
    assert all(path == tmp_path / f"{name}.safetensors" for name, path in files.items())


def test_what_peft_saved_has_its_folders_name(tmp_path: Path) -> None:
    touched(tmp_path, "ink/adapter_model.safetensors", "ink/adapter_config.json")
    touched(tmp_path, "style/oil/adapter_model.safetensors", "tea/adapter_model.safetensors")
    touched(tmp_path, "tea.safetensors", "adapter_model.safetensors")

    files = LoraFolder(tmp_path).files()

    assert list(files) == ["adapter_model", "ink", "style/oil", "tea", "tea/adapter_model"]
    assert files["tea"] == tmp_path / "tea.safetensors"


def test_those_of_the_checkpoint_are_there_too_unless_the_folder_has_the_name(tmp_path: Path) -> None:
    touched(tmp_path, "own/ink.safetensors", "own/four-steps.safetensors", "mine/ink.safetensors")

    files = LoraFolder(tmp_path / "mine", tmp_path / "own").files()

    assert list(files) == ["four-steps", "ink"]
    assert files["ink"] == tmp_path / "mine/ink.safetensors"
    assert list(LoraFolder(None, tmp_path / "own").files()) == ["four-steps", "ink"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    """They could lead anywhere, or round in circles."""
    touched(tmp_path, "elsewhere/secret.safetensors", "loras/ink.safetensors")
    (tmp_path / "loras" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "loras" / "round").symlink_to(tmp_path / "loras")
    (tmp_path / "loras" / "linked.safetensors").symlink_to(tmp_path / "elsewhere" / "secret.safetensors")
    (tmp_path / "loras" / "gone.safetensors").symlink_to(tmp_path / "nothing")

    assert list(LoraFolder(tmp_path / "loras").files()) == ["ink", "linked"]


def test_what_comes_and_goes_is_seen(tmp_path: Path) -> None:
    folder = LoraFolder(tmp_path)
    assert folder.files() == {}
    touched(tmp_path, "new/ink.safetensors")
    assert list(folder.files()) == ["new/ink"]
    os.rename(tmp_path / "new", tmp_path / "old")
    assert list(folder.files()) == ["old/ink"]


def test_names_are_as_many_as_are_served_at_most(tmp_path: Path) -> None:
    touched(tmp_path, *(f"{index % 7}/{index}.safetensors" for index in range(MAX_NAMES + 50)))

    assert len(LoraFolder(tmp_path).files()) == MAX_NAMES


@pytest.mark.parametrize("name", ["../ink", "/ink", "ink/../ink", "./ink", "style//ink", "style/ink/"])
def test_a_name_that_is_a_path_is_unknown(name: str, tmp_path: Path) -> None:
    touched(tmp_path, "ink.safetensors", "loras/ink.safetensors", "loras/style/ink.safetensors")

    with pytest.raises(CheckpointError, match="there is no LoRA"):
        LoraFolder(tmp_path / "loras").path_of(name)
