"""`triptych generate`: what it writes, what it says, and what it refuses."""

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.local.conftest import Up, run
from tests.shared.scripted_coordinator import ScriptedCoordinator, service
from triptych.serving.server import Server
from triptych.serving.settings import ServerSettings
from triptych_local.cli import app


def test_it_writes_numbered_files_and_says_their_seeds(up: Up, tmp_path: Path) -> None:
    result = run(
        *("generate", "a cat", "a dog", "--num-images", "2", "--steps", "2", "--seed", "40"),
        *("-o", tmp_path / "pet.png"),
        environment=up.environment,
    )
    assert result.status == 0, result.stderr
    said = [line.split("  ")[:2] for line in result.stdout.splitlines()]
    assert said == [[f"{tmp_path}/pet-{index}.png", f"seed {40 + index}"] for index in range(4)]
    assert "step 2 of 2" in result.stderr
    assert all((tmp_path / f"pet-{index}.png").read_bytes().startswith(b"\x89PNG") for index in range(4))


async def test_it_says_its_place_in_the_queue(tmp_path: Path) -> None:
    servicer = ScriptedCoordinator()
    servicer.turn.set()
    settings = ServerSettings(listen=f"unix:{tmp_path}/coordinator", drain_seconds=0, grace_seconds=0)
    server = Server([service(servicer)], settings)
    await server.start()
    try:
        words = ("generate", "queue", "--target", server.address, "-o", tmp_path / "cat.png")
        result = await asyncio.to_thread(run, *words)
    finally:
        await server.stop()
    assert result.status == 0, result.stderr
    places = [line for line in result.stderr.splitlines() if "queue" in line]
    assert places == ["in the queue: 2 requests ahead, about 12 s ...", "in the queue: next ..."]


def test_size_is_width_then_height(up: Up, tmp_path: Path) -> None:
    from PIL import Image

    result = run(
        *("generate", "a cat", "--size", "64x48", "--steps", "1", "-o", tmp_path / "cat.png"),
        environment=up.environment,
    )
    assert result.status == 0, result.stderr
    with Image.open(tmp_path / "cat.png", formats=["PNG"]) as picture:
        assert picture.size == (64, 48)


def test_every_option_reaches_the_picture(up: Up, tmp_path: Path) -> None:
    from PIL import Image

    options = (
        *("--negative", "a dog", "--guidance", "3.5", "--guidance-schedule", "interval:0.25:0.75"),
        *("--solver", "euler-ancestral:0.4", "--sigma-schedule", "karras:5", "--step-reuse", "guidance:3"),
        *("--guidance-method", "apg:0.125:9:-0.375", "--guidance-rescale", "0.625"),
        *("--skip-layers", "1:1.75:0:0.875", "--perturb-layers", "0"),
        *("--compose", "a red hat:-0.0625", "--prompt-weight", "0.9375", "--weighting"),
    )
    result = run(
        *("generate", "a cat", "--seed", "3", "--steps", "4", *options, "-o", tmp_path / "cat.png"),
        *("--target", up.coordinator()),
    )
    assert result.status == 0, result.stderr
    with Image.open(tmp_path / "cat.png", formats=["PNG"]) as picture:
        said = json.dumps(json.loads(picture.info["triptych"]))
    assert '"solver": {"euler_ancestral": {"eta": 0.4}}' in said
    assert '"sigma_schedule": {"karras": {"rho": 5.0}}' in said
    assert '"step_reuse": {"guidance": {"every": 3}}' in said
    words = (
        *('"a dog"', "3.5", "interval", "0.25", "0.75", "adaptive_projected", "0.125", "9.0", "-0.375"),
        *("0.625", "skip_layer", "1.75", "0.875", "perturbed", '"a red hat"', "-0.0625", "0.9375"),
        "prompt_weighting",
    )
    assert all(word in said for word in words)


WRONG_WORDS = {
    "files for services elsewhere": (["--target", "h:1", "--offline"], "have their own device"),
    "a size without its height": (["--size", "256"], "'256' is no size: it is WIDTHxHEIGHT"),
    "a schedule without its end": (["--guidance-schedule", "linear"], "'linear' is no guidance schedule"),
    "an unknown solver": (["--solver", "rk45"], "'rk45' is no solver: it is euler, heun"),
    "a solver with a number too many": (["--solver", "heun:2"], "'heun:2' is no solver"),
    "a list of words": (["--sigma-schedule", "explicit:1,a"], "'explicit:1,a' is no sigma schedule"),
    "a reuse of no whole number": (["--step-reuse", "guidance:1.5"], "is no reuse between steps"),
    "an empty list of scales": (["--guidance-schedule", "list:"], "'list:' is no guidance schedule"),
    "an unknown method": (["--guidance-method", "best"], "'best' is no guidance method: it is cfg, apg"),
    "half of APG": (["--guidance-method", "apg:1"], "'apg:1' is no guidance method"),
    "layers without numbers": (["--skip-layers", "all"], "'all' are no layers: they are LAYER,LAYER"),
    "a weight of nothing": (["--prompt-weight", "2"], "weighs a prompt against those of --compose"),
    "another file format": (["-o", "cat.gif"], "'cat.gif' does not end in .png"),
    "a folder that is not there": (["-o", "nowhere/cat.png"], "there is no folder 'nowhere'"),
    "a negative seed": (["--seed", "-2"], "should be greater than or equal to -1"),
    "a LoRA without its weight": (["--lora", "ink="], "'ink=' is no LoRA: it is NAME=WEIGHT"),
    "a LoRA twice": (["--lora", "ink", "--lora", "ink=1"], "a LoRA is named twice"),
    "a device for services elsewhere": (["--target", "h:1", "--device", "cuda"], "have their own device"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_are_explained_and_exit_with_2(case: str) -> None:
    arguments, explanation = WRONG_WORDS[case]
    result = CliRunner().invoke(app, ["generate", "a cat", *arguments])
    assert result.exit_code == 2
    assert explanation in " ".join(result.stderr.replace("│", " ").split())


def test_an_unknown_model_is_one_line_and_exit_status_1(tmp_path: Path) -> None:
    result = run("generate", "a cat", "--model", "no-such-model", "-o", tmp_path / "cat.png")
    assert result.status == 1
    assert result.stderr.splitlines()[-1].startswith(
        "triptych: 'no-such-model' is neither a known model nor a folder"
    )
    assert "Traceback" not in result.stderr


def test_a_coordinator_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = run("generate", "a cat", "--target", "127.0.0.1:1", "-o", tmp_path / "cat.png")
    assert result.status == 1
    assert result.stderr.splitlines()[-1].startswith("triptych: no coordinator answers at 127.0.0.1:1")
    assert "Traceback" not in result.stderr


def test_what_the_coordinator_refuses_is_said_by_field(up: Up, tmp_path: Path) -> None:
    result = run(
        *("generate", "", "--steps", "0", "--size", "63x64", "-o", tmp_path / "cat.png"),
        environment=up.environment,
    )
    assert result.status == 1
    assert result.stderr.splitlines()[-1].startswith("triptych: ")
    assert all(field in result.stderr for field in ("prompts[0]", "num_inference_steps", "width"))
    assert "Traceback" not in result.stderr


def test_another_model_than_the_served_one_is_not_found(up: Up, tmp_path: Path) -> None:
    result = run(
        "generate", "a cat", "--target", up.coordinator(), "--model", "other", "-o", tmp_path / "cat.png"
    )
    assert result.status == 1
    assert "other" in result.stderr.splitlines()[-1]
