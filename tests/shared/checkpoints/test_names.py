"""What a checkpoint is called, through links and in the hub's cache, and what is found beside it."""

import shutil
from pathlib import Path

import pytest

from tests.coordinator.conftest import write_checkpoint
from triptych.checkpoints.names import beside, names_of
from triptych.checkpoints.opening import open_checkpoint
from triptych_coordinator.sampling_config import sampling_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TURBO = "models--stabilityai--stable-diffusion-3.5-large-turbo"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A checkpoint as the hub's cache has it: files are links to blobs."""
    folder = tmp_path / "hub" / TURBO / "snapshots" / COMMIT
    write_checkpoint(folder, "StableDiffusion3Pipeline")
    blobs = tmp_path / "hub" / TURBO / "blobs"
    blobs.mkdir()
    for number, file in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        shutil.move(file, blobs / f"{number:040}")
        file.symlink_to(blobs / f"{number:040}")
    return folder


def assert_turbo(path: Path, name: str) -> None:
    checkpoint = open_checkpoint(str(path))
    sampling = sampling_of(checkpoint)
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (4, 1.0)
    assert checkpoint.name == name


def test_a_folder_of_the_hubs_cache_has_the_repositorys_name(snapshot: Path) -> None:
    assert_turbo(snapshot, "stable-diffusion-3.5-large-turbo")


def test_a_link_is_called_by_its_name_and_known_by_its_targets(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(snapshot)
    assert_turbo(tmp_path / "current", "current")


def test_a_link_with_a_telling_name_to_a_folder_without_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a1b2", "StableDiffusion3Pipeline")
    link = tmp_path / "stable-diffusion-3.5-large-turbo"
    link.symlink_to(tmp_path / "a1b2")
    assert_turbo(link, link.name)


def test_a_path_up_is_called_by_where_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "stable-diffusion-3.5-large-turbo"
    write_checkpoint(folder, "StableDiffusion3Pipeline")
    assert_turbo(folder / "scheduler" / "..", folder.name)


@pytest.mark.parametrize(
    "name",
    ["sd3.5_large_turbo", "sd3.5_large_turbo-Q4_0", "sd3.5_large_turbo_fp8_scaled", "SD3.5-Large-Turbo"],
)
def test_quantized_files_are_known_by_the_name_in_theirs(name: str, tmp_path: Path) -> None:
    assert_turbo_name(tmp_path / f"{name}.safetensors", True)


@pytest.mark.parametrize("name", ["sd3.5_large", "sd3.5_large_turbulent", "sd3.5_large-turbine"])
def test_other_files_are_not(name: str, tmp_path: Path) -> None:
    assert_turbo_name(tmp_path / f"{name}.safetensors", False)


def assert_turbo_name(path: Path, turbo: bool) -> None:
    from triptych.families.sd3 import FAMILY

    path.touch()
    assert (FAMILY.steps_if_distilled(names_of(path)) == 4) == turbo


def test_a_components_own_file_has_its_checkpoints_name(tmp_path: Path) -> None:
    file = tmp_path / "Z-Image-Turbo" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert names_of(file) == ("Z-Image-Turbo",)


def test_what_is_beside_a_link_or_its_target_is_found(tmp_path: Path) -> None:
    target, link = tmp_path / "data" / "flux.safetensors", tmp_path / "models" / "mine.safetensors"
    for folder in (target.parent, link.parent):
        folder.mkdir()
    target.touch()
    link.symlink_to(target)
    assert names_of(link) == ("mine", "flux")
    assert not beside(link, "triptych.json").exists()
    (target.parent / "triptych.json").write_text("{}")
    assert beside(link, "triptych.json") == target.parent / "triptych.json"
    (link.parent / "triptych.json").write_text("{}")
    assert beside(link, "triptych.json") == link.parent / "triptych.json"
