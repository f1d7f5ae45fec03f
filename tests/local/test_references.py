"""References on the command line: given as files, and asked for by name when a picture is made again."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych_local.commands.rerun import Picture
from triptych_local.commands.settings import RerunSettings
from triptych_local.request import Request


def inputs(*files: Path) -> RerunSettings:
    return RerunSettings.model_construct(image=None, mask=None, latents=None, references=list(files))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    written = [tmp_path / "one.png", tmp_path / "other.png"]
    for number, file in enumerate(written):
        file.write_bytes(b"file %d" % number)
    return written


def made_with(files: list[Path], path: Path) -> Picture:
    digests = [sha256(file.read_bytes()).hexdigest() for file in files]
    record: dict[str, Any] = {"request": {"prompts": ["a cat"]}, "references_sha256": digests}
    return Picture(path, record, np.zeros((8, 8, 3), np.uint8))


def test_generate_takes_several(files: list[Path]) -> None:
    given = Request.model_validate({"references": [str(file) for file in files]}).parameters()
    assert given == {"references": [b"file 0", b"file 1"]}


def test_rerun_puts_them_in_their_order(files: list[Path], tmp_path: Path) -> None:
    picture = made_with(files, tmp_path / "picture.png")
    assert list(picture.request(inputs(*reversed(files))).references) == [b"file 0", b"file 1"]


def test_rerun_asks_for_what_is_missing_and_refuses_others(files: list[Path], tmp_path: Path) -> None:
    picture = made_with(files, tmp_path / "picture.png")
    with pytest.raises(ValueError, match="was made with 2 references, which are not inside, and 1 of them"):
        picture.request(inputs(files[0]))
    with pytest.raises(ValueError, match="was not made with 1 of the references"):
        made_with(files[:1], tmp_path / "picture.png").request(inputs(*files))
