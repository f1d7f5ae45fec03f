"""Where sockets are: short enough, and no one else's."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from triptych.errors import StartError
from triptych.serving.addresses import check_listen
from triptych_local.running.folders import (
    claimed_folder,
    standing_coordinator,
    temporary_folder,
    well_known_folder,
)
from triptych_local.running.programs import Addresses
from triptych_local.running.settings import Replicas


def test_the_runtime_folder_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert well_known_folder() == tmp_path / "triptych"


def test_without_a_runtime_folder_each_user_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert well_known_folder() == Path(f"/var/tmp/triptych-{os.getuid()}")


def test_paths_too_long_for_a_socket_are_avoided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with temporary_folder() as temporary:
        for folder in (well_known_folder(), temporary):
            addresses = Addresses.in_folder(folder, Replicas(text_encoders=64, denoisers=64, vae_codecs=64))
            assert check_listen(addresses.coordinator)
            assert all(check_listen(one) for stage in addresses.stages for one in stage.split(","))


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(StartError, match="open to other users"), claimed_folder(folder):
        pass


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartError, match="is not a folder of this user"), claimed_folder(tmp_path / "link"):
        pass


@pytest.mark.parametrize("name", ["missing", "a,b", "file"])
def test_a_runtime_folder_that_cannot_hold_sockets_is_left_for_the_next(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = well_known_folder()
    assert folder == tmp_path / f"triptych-{os.getuid()}"
    with claimed_folder(folder):
        assert check_listen(Addresses.in_folder(folder).coordinator)


def test_another_users_runtime_folder_is_left_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert well_known_folder() == Path(f"/var/tmp/triptych-{other}")


def test_another_users_coordinator_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "triptych"
    assert standing_coordinator(folder) is None
    folder.mkdir(mode=0o700)
    assert standing_coordinator(folder) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "coordinator.sock"))
        assert standing_coordinator(folder) == f"unix:{folder}/coordinator.sock"
        real = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: real + 1)
        with pytest.raises(StartError, match=f"{folder} is not a folder of this user"):
            standing_coordinator(folder)
        monkeypatch.undo()
        if real == 0:
            os.chown(folder / "coordinator.sock", 65534, 65534)
            with pytest.raises(StartError, match=r"coordinator\.sock is another user's socket"):
                standing_coordinator(folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_does_not_keep_the_folder_from_being_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "triptych"
    folder.mkdir(mode=0o700)
    (folder / "up.lock").symlink_to("/dev/full")
    with claimed_folder(folder):
        pass
