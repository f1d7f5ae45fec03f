"""The fingerprint follows whatever decides the bits of an encoding."""

import json
import shutil
from pathlib import Path
from typing import Any

from triptych.compute.settings import StageSettings
from triptych_text_encoder.servicer import create_servicer


def fingerprint(folder: Path, dtype: Any = "float32") -> str:
    return create_servicer(StageSettings(model=str(folder), dtype=dtype))._model.fingerprint


def test_a_copy_has_the_same_fingerprint(with_t5: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(with_t5, tmp_path / "copy"))

    assert fingerprint(copy) == fingerprint(with_t5)


def test_another_dtype_has_another_fingerprint(with_t5: Path) -> None:
    assert fingerprint(with_t5, "bfloat16") != fingerprint(with_t5)


def test_another_tokenizer_has_another_fingerprint(with_t5: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(with_t5, tmp_path / "copy"))
    config = copy / "tokenizer_2/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "a"}))

    assert fingerprint(copy) != fingerprint(with_t5)
