"""`triptych up` with two denoisers: real services whose loss costs a step and no bit."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.local.conftest import Up, running_up
from triptych.client import AsyncClient
from triptych.errors import StartError
from triptych_local.running.programs import Addresses, split_programs, with_metrics
from triptych_local.running.settings import ModelChoice, Replicas


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Up]:
    """Two denoisers, two VAE codecs."""
    folder = tmp_path_factory.mktemp("run")
    with running_up(folder, "--denoisers", "2", "--vae-codecs", "2", "--model", tiny_checkpoint) as up:
        yield up


def denoisers(up: Up) -> list[psutil.Process]:
    children = psutil.Process(up.process.pid).children()
    return [child for child in children if "triptych_denoiser" in child.cmdline()]


async def pictures(client: AsyncClient, prompt: str, steps: int = 100, num_images: int = 2) -> list[bytes]:
    generation = await client.generate(
        prompt, seed=3, num_inference_steps=steps, num_images_per_prompt=num_images
    )
    return [image.png for image in generation.images]


async def test_a_denoiser_killed_among_eight_strangers_costs_a_step_and_comes_back(up: Up) -> None:
    async with AsyncClient(up.coordinator()) as client:
        alone = await pictures(client, "a cat")
        said = len(up.lines)
        strangers = [asyncio.create_task(pictures(client, f"a dog, {n}", 40, 1)) for n in range(8)]
        wanted = asyncio.create_task(pictures(client, "a cat"))
        await asyncio.sleep(0.3)
        first, second = denoisers(up)
        first.kill()
        assert await wanted == alone
        assert len({picture for stranger in await asyncio.gather(*strangers) for picture in stranger}) == 8
        names = await asyncio.to_thread(up.wait_for, "the denoiser", said)
        assert "ended (SIGKILL); starting it again" in names
        name = names.partition(" ended")[0]
        await asyncio.to_thread(up.wait_for, f"{name} serves again", said)
        second.kill()
        assert await pictures(client, "a cat") == alone
    assert any("is ejected" in line for line in up.lines[said:])


def test_each_process_has_a_port_of_its_own_for_metrics_the_coordinator_the_first() -> None:
    programs = split_programs(Addresses.in_folder(Path("/run"), Replicas(denoisers=2)), ModelChoice())
    ports = {program.name: program.options[-1] for program in with_metrics(programs, 9464)}
    assert ports["coordinator"] == "127.0.0.1:9464"
    assert sorted(ports.values()) == [f"127.0.0.1:{port}" for port in range(9464, 9469)]
    with pytest.raises(StartError, match="5 ports for metrics"):
        with_metrics(programs, 65532)
