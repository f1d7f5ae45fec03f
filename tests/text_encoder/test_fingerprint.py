"""The fingerprint follows whatever decides the bits of an encoding."""

import json
import shutil
from pathlib import Path

from triptych.checkpoints.opening import open_checkpoint
from triptych_text_encoder.fingerprint import text_encoder_fingerprint
from triptych_text_encoder.recipes import Recipe


def fingerprint(folder: Path, recipe: Recipe, dtype: str = "float32") -> str:
    return text_encoder_fingerprint(open_checkpoint(str(folder)), recipe, "cpu", dtype)


def test_a_copy_has_the_same_fingerprint(with_t5: Path, recipe_with_t5: Recipe, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(with_t5, tmp_path / "copy"))

    assert fingerprint(copy, recipe_with_t5) == fingerprint(with_t5, recipe_with_t5)


def test_another_dtype_has_another_fingerprint(with_t5: Path, recipe_with_t5: Recipe) -> None:
    assert fingerprint(with_t5, recipe_with_t5, "bfloat16") != fingerprint(with_t5, recipe_with_t5)


def test_another_tokenizer_has_another_fingerprint(
    with_t5: Path, recipe_with_t5: Recipe, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(with_t5, tmp_path / "copy"))
    config = copy / "tokenizer_2/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "a"}))

    assert fingerprint(copy, recipe_with_t5) != fingerprint(with_t5, recipe_with_t5)
