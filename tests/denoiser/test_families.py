"""What differs between families, over a real socket: guidance as an input, pooled vectors, text positions."""

from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
import torch
from torch import Tensor

from tests.denoiser.serving import Prompt, random_latents, request, serving
from tests.denoiser.small_families import (
    CHANNELS,
    POOLED,
    WIDTH,
    write_flux,
    write_flux2,
    write_flux3,
    write_krea2,
    write_qwen_image,
    write_qwen_image21,
    write_z_image,
)
from tests.serving import refused
from triptych.tensors import message_to_torch
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest, PredictRequest
from triptych_denoiser.settings import DenoiserSettings

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "FLUX with guidance": lambda folder: write_flux(folder, guidance=True),
    "FLUX without": lambda folder: write_flux(folder, guidance=False),
    "FLUX.2": write_flux2,
    "FLUX.3": write_flux3,
    "FLUX.3, a flow map": lambda folder: write_flux3(folder, flow_map=True),
    "Krea 2": write_krea2,
    "Qwen-Image": write_qwen_image,
    "Qwen-Image 2.1": write_qwen_image21,
    "Z-Image": write_z_image,
}
CAT = Prompt(torch.randn(7, WIDTH), torch.randn(POOLED))
CAT_IN_CHINESE = Prompt(torch.cat([torch.randn(3, WIDTH), torch.zeros(4, WIDTH)]), torch.zeros(0))


def of_family(settings: DenoiserSettings, family: str, folder: Path) -> DenoiserSettings:
    return settings.model_copy(update={"model": str(FAMILIES[family](folder))})


def with_guidance(asked: PredictRequest, *scales: float) -> PredictRequest:
    asked.guidance_scales.extend(scales)
    return asked


@pytest.mark.parametrize(
    ("family", "pooled", "guidance", "sizes"),
    [
        ("FLUX with guidance", POOLED, True, (2, 512, 128)),
        ("FLUX without", POOLED, False, (2, 512, 128)),
        ("FLUX.2", 0, False, (1, 256, 64)),
        ("FLUX.3", 0, False, (1, 256, 64)),
        ("FLUX.3, a flow map", 0, False, (1, 256, 64)),
        ("Krea 2", 0, False, (2, 512, 128)),
        ("Qwen-Image", 0, False, (2, 512, 128)),
        ("Qwen-Image 2.1", 0, False, (2, 256, 64)),
        ("Z-Image", 0, False, (2, 64, 64)),
    ],
)
async def test_get_model_says_what_the_family_takes(
    family: str,
    pooled: int,
    guidance: bool,
    sizes: tuple[int, int, int],
    settings: DenoiserSettings,
    tmp_path: Path,
) -> None:
    async with serving(of_family(settings, family, tmp_path)) as denoiser:
        answer = await denoiser.stub.GetModel(DenoiserServiceGetModelRequest())
    assert answer.latent_channels == CHANNELS
    assert (answer.latent_multiple, answer.max_latent_size, answer.default_latent_size) == sizes
    assert (answer.joint_attention_dim, answer.pooled_projection_dim) == (WIDTH, pooled)
    assert answer.guidance_embedded is guidance
    assert answer.takes_target_sigma is (family == "FLUX.3, a flow map")


async def test_rows_of_different_guidance_have_the_same_bits_as_alone(
    settings: DenoiserSettings, tmp_path: Path
) -> None:
    latents, sigmas, scales = random_latents(0, samples=3, height=6), [0.9, 0.5, 0.5], [3.5, 1.0, 7.0]
    async with serving(of_family(settings, "FLUX with guidance", tmp_path)) as denoiser:
        await denoiser.stub.PutConditioning(CAT.upload())

        async def predict(asked: PredictRequest) -> Tensor:
            return message_to_torch((await denoiser.stub.Predict(asked)).velocities, "velocities")[0]

        together = await predict(with_guidance(request(latents, sigmas, [[CAT] * 3]), *scales))
        alone = [
            await predict(with_guidance(request(latents[i : i + 1], sigmas[i : i + 1], [[CAT]]), scales[i]))
            for i in range(3)
        ]
        unguided = await predict(with_guidance(request(latents[:1], sigmas[:1], [[CAT]]), 0.0))

    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(unguided, alone[0])


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [
        ([], "guidance_scales: 0 of them for 2 samples; this model takes one for each"),
        ([3.5], "guidance_scales: 1 of them for 2 samples"),
        ([3.5, float("nan")], "guidance_scales[1]: is nan; allowed are 0 to 100"),
        ([float("inf"), 3.5], "guidance_scales[0]: is inf; allowed are 0 to 100"),
        ([3.5, -1.0], "guidance_scales[1]: is -1; allowed are 0 to 100"),
    ],
)
async def test_guidance_that_does_not_fit_is_refused(
    scales: list[float], sentence: str, settings: DenoiserSettings, tmp_path: Path
) -> None:
    async with serving(of_family(settings, "FLUX with guidance", tmp_path)) as denoiser:
        await denoiser.stub.PutConditioning(CAT.upload())
        asked = with_guidance(request(random_latents(0, samples=2), [0.5, 0.5], [[CAT] * 2]), *scales)
        error = await refused(denoiser.stub.Predict(asked))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message


@pytest.mark.parametrize(
    ("family", "targets", "sentence"),
    [
        ("FLUX.3, a flow map", [], "target_sigmas: 0 of them for 2 samples"),
        ("FLUX.3, a flow map", [0.5, 1.5], "target_sigmas[1]: is 1.5; allowed are 0 to 1"),
        ("FLUX.3, a flow map", [float("nan"), 0.5], "target_sigmas[0]: is nan; allowed are 0 to 1"),
        ("FLUX.3", [0.5, 0.5], "target_sigmas: 2 of them; this model does not take any"),
    ],
)
async def test_target_levels_that_do_not_fit_are_refused(
    family: str, targets: list[float], sentence: str, settings: DenoiserSettings, tmp_path: Path
) -> None:
    async with serving(of_family(settings, family, tmp_path)) as denoiser:
        await denoiser.stub.PutConditioning(CAT_IN_CHINESE.upload())
        asked = request(random_latents(0, samples=2), [0.5, 0.5], [[CAT_IN_CHINESE] * 2])
        asked.target_sigmas.extend(targets)
        error = await refused(denoiser.stub.Predict(asked))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message


async def test_rows_to_different_levels_have_the_same_bits_as_alone(
    settings: DenoiserSettings, tmp_path: Path
) -> None:
    latents, sigmas, targets = random_latents(0, samples=3), [0.9, 0.5, 0.5], [0.7, 0.4, 0.0]
    async with serving(of_family(settings, "FLUX.3, a flow map", tmp_path)) as denoiser:
        await denoiser.stub.PutConditioning(CAT_IN_CHINESE.upload())

        async def predict(rows: slice) -> Tensor:
            asked = request(latents[rows], sigmas[rows], [[CAT_IN_CHINESE] * len(sigmas[rows])])
            asked.target_sigmas.extend(targets[rows])
            return message_to_torch((await denoiser.stub.Predict(asked)).velocities, "velocities")[0]

        together = await predict(slice(None))
        alone = [await predict(slice(row, row + 1)) for row in range(3)]

    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(alone[1], alone[2])


async def test_float16_takes_no_guidance_that_overflows_it(
    settings: DenoiserSettings, tmp_path: Path
) -> None:
    half = of_family(settings, "FLUX with guidance", tmp_path).model_copy(update={"dtype": "float16"})
    async with serving(half) as denoiser:
        await denoiser.stub.PutConditioning(CAT.upload())
        asked = request(random_latents(0), [0.5], [[CAT]])
        error = await refused(denoiser.stub.Predict(with_guidance(asked, 66.0)))

    assert "guidance_scales[0]: is 66; allowed are 0 to 65.504" in error.message


async def test_equal_text_tokens_with_positions_are_all_attended(
    settings: DenoiserSettings, tmp_path: Path
) -> None:
    latents = random_latents(0)
    async with serving(of_family(settings, "Z-Image", tmp_path)) as denoiser:
        await denoiser.stub.PutConditioning(CAT_IN_CHINESE.upload())
        answer = await denoiser.stub.Predict(request(latents, [0.5], [[CAT_IN_CHINESE]]))
        with torch.inference_mode():
            expected = denoiser.servicer._predictor.model(
                latents, torch.tensor([0.5]), CAT_IN_CHINESE.sequence[None]
            )

    assert torch.equal(message_to_torch(answer.velocities, "velocities")[0], expected)


@pytest.mark.parametrize(
    ("family", "prompt", "sentence"),
    [
        (
            "FLUX without",
            Prompt(torch.zeros(513, WIDTH), torch.zeros(POOLED)),
            "513 tokens; allowed are 1 to 512",
        ),
        (
            "FLUX without",
            Prompt(torch.zeros(5, WIDTH), torch.zeros(0)),
            "pooled.shape: must be [24], not [0]",
        ),
        ("Z-Image", Prompt(torch.zeros(97, WIDTH), torch.zeros(0)), "97 tokens; allowed are 1 to 96"),
        (
            "Z-Image",
            Prompt(torch.zeros(5, WIDTH), torch.zeros(POOLED)),
            "pooled.shape: must be [0], not [24]",
        ),
    ],
)
async def test_conditioning_of_another_family_is_refused(
    family: str, prompt: Prompt, sentence: str, settings: DenoiserSettings, tmp_path: Path
) -> None:
    async with serving(of_family(settings, family, tmp_path)) as denoiser:
        error = await refused(denoiser.stub.PutConditioning(prompt.upload()))

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in error.message
