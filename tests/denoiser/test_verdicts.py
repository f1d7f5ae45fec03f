"""What a trial of shared passes found is remembered, and a broken memory is only a slower start."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from triptych.checkpoints.opening import open_checkpoint
from triptych_denoiser import predictor, verdicts
from triptych_denoiser.models import load_transformer
from triptych_denoiser.models.transformer import Transformer
from triptych_denoiser.predictor import Predictor, create_predictor
from triptych_denoiser.settings import DenoiserOptions
from triptych_denoiser.verdicts import remember, remembered, verdict_file


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Transformer:
    return load_transformer(open_checkpoint(str(tiny_checkpoint)), "cpu", torch.float32)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Predictor]:
    """The predictors that are tried from now on, all of which may share passes of one size alone."""
    tried: list[Predictor] = []
    monkeypatch.setattr(predictor, "rows_are_independent", lambda one: tried.append(one) or True)
    monkeypatch.setattr(predictor, "mixed_rows_are_independent", lambda one: False)
    return tried


def created(model: Transformer, file: Path | None) -> Predictor:
    return create_predictor(model, torch.device("cpu"), torch.float32, DenoiserOptions(), verdict_file=file)


def test_a_second_start_does_not_try_again(
    model: Transformer, trials: list[Predictor], tmp_path: Path
) -> None:
    file = tmp_path / "cache/verdict"
    first, second = created(model, file), created(model, file)

    assert len(trials) == 1
    assert (first.max_rows, first.mixes) == (second.max_rows, second.mixes) == (16, False)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"of any", b"\xff\x00", b"of any sizes\n"])
def test_a_broken_verdict_is_tried_anew(
    content: bytes, model: Transformer, trials: list[Predictor], tmp_path: Path
) -> None:
    file = tmp_path / "verdict"
    file.write_bytes(content)
    created(model, file)

    assert len(trials) == 1
    assert remembered(file) == "of one size and text length"


def a_file_in_place_of_the_folder(tmp_path: Path) -> Path:
    (tmp_path / "cache").touch()
    return tmp_path / "cache/verdict"


def a_folder_in_place_of_the_file(tmp_path: Path) -> Path:
    (tmp_path / "verdict/inside").mkdir(parents=True)
    return tmp_path / "verdict"


@pytest.mark.parametrize("broken", [a_file_in_place_of_the_folder, a_folder_in_place_of_the_file])
def test_a_cache_that_cannot_be_used_is_no_error(
    broken: Callable[[Path], Path], model: Transformer, trials: list[Predictor], tmp_path: Path
) -> None:
    file = broken(tmp_path)
    created(model, file)
    created(model, file)

    assert len(trials) == 2
    assert not list(tmp_path.glob("tmp*"))


def test_a_full_disk_leaves_no_half_verdict(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from triptych_denoiser.settings import DenoiserOptions
from triptych_denoiser.verdicts import remember
remember(Path({str(tmp_path / "verdict")!r}), "of any sizes")
"""
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4)),
    )
    assert list(tmp_path.iterdir()) == []


def test_another_stage_machine_or_code_has_another_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [verdict_file("a", 16, True), verdict_file("b", 16, True), verdict_file("a", 8, True)]
    files.append(verdict_file("a", 16, False))
    monkeypatch.setattr(verdicts, "processor", lambda: "another one")
    files.append(verdict_file("a", 16, True))
    monkeypatch.setattr(verdicts, "_code", lambda: "newer")
    files.append(verdict_file("a", 16, True))

    assert len(set(files)) == len(files)


def test_it_is_in_the_cache_folder_of_the_user_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = verdict_file("a", 16, True)
    assert file is not None
    assert file.is_relative_to(tmp_path / "triptych")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert verdict_file("a", 16, True) is None
    remember(None, "of any sizes")
    assert remembered(None) is None
