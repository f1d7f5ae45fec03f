"""`triptych generate` that edits, `triptych grid` and `triptych rerun`, as a user runs them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin

from tests.local.conftest import Up, run
from triptych_local.cli import app


def text(path: Path) -> dict[str, Any]:
    with Image.open(path, formats=["PNG"]) as picture:
        picture.load()
        return dict(json.loads(picture.info["triptych"]))


def pixels(path: Path) -> Any:
    with Image.open(path, formats=["PNG"]) as picture:
        return np.asarray(picture)


def unboxed(stderr: str) -> str:
    """What a box around a usage error says, in one line."""
    return " ".join(stderr.replace("│", " ").split())


def done(up: Up, *arguments: str | Path) -> str:
    """Runs a command that must succeed; what it said on standard error."""
    result = run(*arguments, environment=up.environment)
    assert result.status == 0, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def start(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, start.png, its latents, and a mask."""
    folder = tmp_path_factory.mktemp("edit")
    done(up, "generate", "a cat", "--seed", "1", "--steps", "3", "--size", "64x48",
         "-o", folder / "start.png", "--save-latents", folder / "start.npy")  # fmt: skip
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (32, 0, 64, 48))
    mask.save(folder / "mask.png")
    return folder


EDITS = {
    "text to image": ("--size", "64x48", "--guidance-schedule", "linear:1", "--negative", "mud"),
    "image to image": ("--image", "start.png", "--strength", "0.7"),
    "inpainting": ("--image", "start.png", "--mask", "mask.png"),
    "inpainting that preserves": ("--image", "start.png", "--mask", "mask.png", "--paste-back"),
    "outpainting": ("--image", "start.png", "--margins", "16:0:16:16"),
    "variation": ("--variation", "9:0.25"),
    "clean latents": ("--latents", "start.npy"),
    "noise": ("--noise", "start.npy"),
}
GIVEN_AGAIN = {"--image", "--mask", "--latents", "--noise"}


@pytest.mark.parametrize("case", EDITS)
def test_every_picture_can_be_made_again_to_the_bit(up: Up, start: Path, tmp_path: Path, case: str) -> None:
    words = [start / word if (start / word).is_file() else word for word in EDITS[case]]
    first = tmp_path / "first.png"
    done(up, "generate", "a dog", "--seed", "5", "--steps", "3", *words, "-o", first)
    pairs = zip(words[::2], words[1::2], strict=False)
    again = [w for option, value in pairs if option in GIVEN_AGAIN for w in (option, value)]
    again = ["--latents" if word == "--noise" else word for word in again]
    said = done(up, "rerun", first, *again)
    assert "the same picture, to the bit" in said
    assert "warning" not in said
    assert (tmp_path / "first-again.png").read_bytes() == first.read_bytes()
    if again:
        result = run("rerun", first, environment=up.environment)
        assert result.status == 2
        assert "not inside" in unboxed(result.stderr)


def test_a_record_that_does_not_say_how_its_input_was_read_is_of_the_time_before_it_did(
    up: Up, start: Path, tmp_path: Path
) -> None:
    thin = Image.new("L", (64, 48), 0)
    thin.paste(255, (33, 0, 50, 48))
    thin.save(tmp_path / "mask.png")
    inputs = ("--image", start / "start.png", "--mask", tmp_path / "mask.png")
    old, words = tmp_path / "old.png", ("generate", "a dog", "--seed", "5", "--steps", "3", *inputs)
    done(up, *words, "-o", tmp_path / "new.png")
    done(up, *words, "--read-as-diffusers", "-o", old)
    assert not np.array_equal(pixels(old), pixels(tmp_path / "new.png"))
    record = text(old)
    assert record["request"].pop("read_as_diffusers")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("triptych", json.dumps(record))
    Image.fromarray(pixels(old)).save(old, pnginfo=chunks)
    assert "the same picture, to the bit" in done(up, "rerun", old, *inputs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("first.webp", ()),
        ("first.jpg", ()),
        ("first.webp", ("--output-format", "webp:70")),
        ("first.jpeg", ("--output-format", "jpeg:60")),
    ],
)
def test_webp_and_jpeg_are_made_again_too(up: Up, tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    first = tmp_path / name
    done(up, "generate", "a dog", "--seed", "5", "--steps", "2", "--size", "64x48", "-o", first, *words)
    with Image.open(first) as picture:
        assert picture.format == ("WEBP" if first.suffix == ".webp" else "JPEG")
    assert "the same picture, to the bit" in done(up, "rerun", first)
    assert first.with_stem("first-again").read_bytes() == first.read_bytes()
    if name == "first.webp" and not words:
        assert "the same picture, to the bit" in done(up, "rerun", first, "-o", tmp_path / "again.png")
        with Image.open(tmp_path / "again.png") as picture:
            assert picture.format == "PNG"


def test_a_picture_of_a_batch_is_made_again_alone(up: Up, tmp_path: Path) -> None:
    done(up, "generate", "a dog", "a cat", "--num-images", "2", "--seed", "5", "--steps", "2",
         "--variation", "3:0.5", "-o", tmp_path / "pet.png")  # fmt: skip
    done(up, "rerun", tmp_path / "pet-3.png", "-o", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "pet-3.png").read_bytes()


def test_other_fingerprints_are_a_warning_with_reasons(up: Up, start: Path, tmp_path: Path) -> None:
    record = text(start / "start.png")
    record["fingerprints"]["denoiser"] = ["0123"]
    record["version"] = "0.0.1"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("triptych", json.dumps(record))
    changed = pixels(start / "start.png").copy()
    changed[0, 0, 0] ^= 1
    Image.fromarray(changed).save(tmp_path / "old.png", pnginfo=chunks)
    said = done(up, "rerun", tmp_path / "old.png")
    assert "0.033 % of the pixels differ, by at most 1" in said
    assert "the denoiser has the fingerprint" in said
    assert "then it was 0123: other weights" in said
    assert "then it was 0.0.1" in said


def test_a_grid_goes_over_two_parameters(up: Up, tmp_path: Path) -> None:
    said = done(up, "grid", "a cat", "--x", "guidance=1,4,7", "--y", "seed=1,2", "--with", "steps=2",
                "--with", "size=64x48", "-o", tmp_path / "grid.png")  # fmt: skip
    assert "step 6 of 6" in said
    record = text(tmp_path / "grid.png")
    assert record["grid"] == {"x": {"guidance": ["1", "4", "7"]}, "y": {"seed": ["1", "2"]}}
    assert [(p["guidance_scale"], p["seed"]) for p in record["pictures"]] == [
        (1, 1), (4, 1), (7, 1), (1, 2), (4, 2), (7, 2),
    ]  # fmt: skip
    done(up, "generate", "a cat", "--guidance", "7", "--seed", "2", "--steps", "2", "--size", "64x48",
         "-o", tmp_path / "one.png")  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "grid.png")[-56:-8, -72:-8], pixels(tmp_path / "one.png"))
    result = run("rerun", tmp_path / "grid.png", environment=up.environment)
    assert result.status == 2
    assert "is a grid" in unboxed(result.stderr)


def test_a_grid_over_prompts_with_commas_has_one_seed(up: Up, tmp_path: Path) -> None:
    done(up, "grid", "a cat", "--x", "prompt=a cat, asleep|a dog", "--with", "steps=1",
         "-o", tmp_path / "grid.png")  # fmt: skip
    pictures = text(tmp_path / "grid.png")["pictures"]
    assert [picture["prompt"] for picture in pictures] == ["a cat, asleep", "a dog"]
    assert pictures[0]["seed"] == pictures[1]["seed"]


WRONG_WORDS = {
    "no margins": (["generate", "a", "--margins", "5"], "'5' are no margins"),
    "no variation": (["generate", "a", "--variation", "5"], "'5' is no variation"),
    "no file": (["generate", "a", "--image", "nowhere.png"], "'nowhere.png' cannot be read"),
    "no latents": (["generate", "a", "--latents", __file__], "cannot be read as a NumPy file"),
    "no axis": (["grid", "a", "--x", "colour=red"], "'colour=red' is not NAME=VALUE,VALUE,..."),
    "no number": (["grid", "a", "--x", "steps=1,many"], "'steps=1,many'"),
    "one axis twice": (["grid", "a", "--x", "seed=1", "--y", "seed=2"], "both go over seed"),
    "no picture": (["rerun", __file__, "-o", "a.png"], "cannot be read as a PNG, WebP or JPEG file"),
    "two kinds": (
        ["generate", "a", "-o", "a.webp", "--output-format", "jpeg"],
        "--output-format is jpeg, but --output is 'a.webp'",
    ),
    "no kind": (["generate", "a", "-o", "a.gif"], "'a.gif' does not end in .png, .webp, .jpg or .jpeg"),
    "no quality": (["generate", "a", "--output-format", "png:80"], "'png:80'"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_are_explained_and_exit_with_2(case: str) -> None:
    arguments, explanation = WRONG_WORDS[case]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert explanation in unboxed(result.stderr)
