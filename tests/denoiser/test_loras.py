"""LoRAs of requests and of the options, over a real socket."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from torch import Tensor

from tests.denoiser.loras import KINDS, Q, lora_of_kind, random_lora, written
from tests.denoiser.serving import Denoiser, Prompt, random_latents, request, serving
from tests.serving import refused
from triptych.checkpoints.opening import open_checkpoint
from triptych.compute.lora_files import read_lora_file
from triptych.compute.lora_placing import place
from triptych.errors import StartError, TriptychError
from triptych.tensors import message_to_torch
from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest, PredictRequest, PredictResponse
from triptych.v1.lora_pb2 import Lora
from triptych_denoiser.models import modules_of
from triptych_denoiser.models.layers import Linear
from triptych_denoiser.settings import DenoiserSettings

CAT = Prompt.random(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two LoRAs, a file that is none, and what is not served."""
    folder = tmp_path / "loras"
    (folder / "sub.safetensors").mkdir(parents=True)
    written(folder / "ink.safetensors", random_lora(1))
    written(folder / "oil paint.safetensors", random_lora(2))
    written(folder / "wrong.safetensors", {f"{Q}.lora_A.weight": torch.ones(1, 1)})
    written(folder / ".hidden.safetensors", random_lora(3))
    written(tmp_path / "outside.safetensors", random_lora(4))
    (folder / "notes.txt").write_text("ink")
    return folder


@pytest.fixture
def with_folder(settings: DenoiserSettings, folder: Path) -> DenoiserSettings:
    return settings.model_copy(update={"lora_folder": folder})


def asked(seed: int, samples: int = 1, **loras: float) -> PredictRequest:
    latents, sigmas = random_latents(seed, samples), [(seed + 1) / 9] * samples
    predict = request(latents, sigmas, [[CAT] * samples])
    predict.loras.extend(Lora(name=name.replace("_", " "), weight=weight) for name, weight in loras.items())
    return predict


async def answer(denoiser: Denoiser, predict: PredictRequest) -> PredictResponse:
    await denoiser.stub.PutConditioning(CAT.upload())
    response: PredictResponse = await denoiser.stub.Predict(predict)
    return response


def velocities(response: PredictResponse) -> Tensor:
    return message_to_torch(response.velocities, "velocities")


async def refusal(denoiser: Denoiser, predict: PredictRequest) -> TriptychError:
    return await refused(answer(denoiser, predict))


async def test_without_loras_the_bits_are_those_of_a_server_without_the_folder(
    settings: DenoiserSettings, with_folder: DenoiserSettings
) -> None:
    async with serving(settings) as plain:
        expected = await answer(plain, asked(0))
    async with serving(with_folder) as denoiser:
        before = await answer(denoiser, asked(0))
        changed = await answer(denoiser, asked(0, ink=1))
        none = await answer(denoiser, asked(0, ink=0))
        after = await answer(denoiser, asked(0))

    assert before.velocities == none.velocities == after.velocities == expected.velocities
    assert before.fingerprint == none.fingerprint == after.fingerprint == expected.fingerprint
    assert (velocities(changed) - velocities(expected)).abs().max() > 0.05
    assert changed.fingerprint != expected.fingerprint


async def test_requests_with_different_loras_have_the_same_bits_at_once_as_alone(
    with_folder: DenoiserSettings,
) -> None:
    calls = [
        asked(0),
        asked(1, samples=3, ink=1),
        asked(2, oil_paint=0.5),
        asked(3, samples=2, ink=1),
        asked(4, ink=0.5),
        asked(5, ink=1, oil_paint=-0.5),
        asked(6, oil_paint=-0.5, ink=1),
        asked(7, samples=4),
    ]
    async with serving(with_folder) as denoiser:
        passes: list[int] = []
        predictor = denoiser.servicer._predictor
        assert predictor.max_rows > 1 or not torch.backends.mkl.is_available()
        predict = predictor.predict
        alone = [await answer(denoiser, call) for call in calls]

        def noted(rows: Any) -> Tensor:
            passes.append(len(rows))
            return predict(rows)

        predictor.predict = noted  # type: ignore[method-assign]
        together = await asyncio.gather(*(answer(denoiser, call) for call in calls))

    assert [a.velocities for a in alone] == [t.velocities for t in together]
    assert [a.fingerprint for a in alone] == [t.fingerprint for t in together]
    assert sum(passes) == 14


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
@pytest.mark.parametrize("rank", [1, 2, 3, 8, 23, 24, 33, 64, 128])
def test_a_row_with_a_lora_does_not_depend_on_how_many_there_are(
    rank: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    modules = modules_of(open_checkpoint(str(tiny_checkpoint)))
    file = read_lora_file(written(tmp_path / "a.safetensors", random_lora(1, rank)), modules)
    for change in place(file, modules.places, lambda module: torch.ones(1)).changes.values():
        assert change.low_rank
        linear = Linear(32, len(change.low_rank.up)).requires_grad_(False)
        linear.changes = ((change, 0.8),)
        rows = torch.randn(130, 32)
        alone = torch.cat([linear(row[None]) for row in rows])
        for count in (2, 3, 5, 16, 33, 130):
            assert torch.equal(linear(rows[:count]), alone[:count])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL to fix")
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_any_kind_does_not_depend_on_how_many_there_are(
    kind: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    modules = modules_of(open_checkpoint(str(tiny_checkpoint)))
    file = read_lora_file(written(tmp_path / "a.safetensors", lora_of_kind(kind)), modules)
    linear = Linear(32, 128).requires_grad_(False)
    ((_, change),) = place(file, modules.places, lambda module: linear.weight).changes.items()
    linear.changes = ((change, 0.8),)
    rows = torch.randn(130, 32)
    alone = torch.cat([linear(row[None]) for row in rows])
    for count in (2, 3, 5, 16, 33, 130):
        assert torch.equal(linear(rows[:count]), alone[:count])


@pytest.mark.parametrize("kind", KINDS)
async def test_quantized_and_fused_weights_take_any_kind(
    kind: str, with_folder: DenoiserSettings, folder: Path
) -> None:
    written(folder / "kind.safetensors", lora_of_kind(kind))
    async with serving(with_folder) as denoiser:
        exact = velocities(await answer(denoiser, asked(0, kind=0.7)))
        plain = velocities(await answer(denoiser, asked(0)))
    async with serving(with_folder.model_copy(update={"lora": ["kind=0.7"]})) as denoiser:
        fused = velocities(await answer(denoiser, asked(0)))
    async with serving(with_folder.model_copy(update={"quantization": "int8-weight-only"})) as denoiser:
        rounded = velocities(await answer(denoiser, asked(0, kind=0.7)))

    change = (plain - exact).abs().max()
    assert change > 0
    torch.testing.assert_close(fused, exact, rtol=1e-4, atol=1e-5)
    assert 0 < (rounded - exact).abs().max() < max(0.3 * change, 0.05)


async def test_what_of_a_lora_is_not_applied_is_said(with_folder: DenoiserSettings, folder: Path) -> None:
    others = {"transformer.odd.diff": torch.ones(1), "lora_te1_x.diff": torch.ones(1)}
    written(folder / "some.safetensors", random_lora(1) | others)
    async with serving(with_folder) as denoiser:
        some, ink = await answer(denoiser, asked(0, some=1)), await answer(denoiser, asked(0, ink=1))

    assert list(some.warnings) == [
        "the LoRA 'some': 1 of its 5 tensors fit nothing in the transformer and are not applied, "
        "such as transformer.odd.diff"
    ]
    assert list(some.text_encoder_loras) == ["some"]
    assert (list(ink.warnings), list(ink.text_encoder_loras)) == ([], [])
    assert some.velocities == ink.velocities


@pytest.mark.parametrize("word", ["ink=0.7", "{folder}/ink.safetensors=0.7"])
async def test_a_lora_fused_at_start_is_that_of_a_request_up_to_rounding(
    word: str, with_folder: DenoiserSettings, folder: Path
) -> None:
    async with serving(with_folder) as denoiser:
        per_request = await answer(denoiser, asked(0, ink=0.7))
        plain = await answer(denoiser, asked(0))
    fused = with_folder.model_copy(update={"lora": [word.format(folder=folder)]})
    async with serving(fused) as denoiser:
        at_start = await answer(denoiser, asked(0))
        both = await answer(denoiser, asked(0, ink=-0.7))

    expected = velocities(per_request)
    torch.testing.assert_close(velocities(at_start), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(velocities(both), velocities(plain), rtol=1e-4, atol=1e-4)
    assert len({response.fingerprint for response in (plain, at_start, both, per_request)}) == 4


async def test_get_model_lists_the_files_of_the_folder(
    with_folder: DenoiserSettings, settings: DenoiserSettings, folder: Path
) -> None:
    asked = DenoiserServiceGetModelRequest()
    async with serving(with_folder) as denoiser:
        assert list((await denoiser.stub.GetModel(asked)).loras) == ["ink", "oil paint", "wrong"]
        written(folder / "chalk.safetensors", random_lora(5))
        assert "chalk" in (await denoiser.stub.GetModel(asked)).loras
    async with serving(settings) as denoiser:
        assert not (await denoiser.stub.GetModel(asked)).loras


@pytest.mark.parametrize(
    "name",
    ["tempera", "", "../outside", "ink.safetensors", ".hidden", "sub", "notes.txt", "/etc/passwd", "ink\0"],
)
async def test_an_unknown_name_is_not_found_and_what_there_is_is_listed(
    name: str, with_folder: DenoiserSettings
) -> None:
    async with serving(with_folder) as denoiser:
        error = await refusal(denoiser, asked(0, **{name: 1.0}))
        await answer(denoiser, asked(0, ink=1))

    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.message == f"there is no LoRA {name!r}; there are: ink, oil paint, wrong"


async def test_a_list_of_many_names_is_cut(with_folder: DenoiserSettings, folder: Path) -> None:
    for index in range(30):
        (folder / f"{index:02}{'x' * 200}.safetensors").touch()
    async with serving(with_folder) as denoiser:
        error = await refusal(denoiser, asked(0, **{"y" * 100_000: 1.0}))

    assert error.code is grpc.StatusCode.NOT_FOUND
    assert len(error.message) <= 1000


async def test_a_server_without_a_folder_says_that_it_has_none(denoiser: Denoiser) -> None:
    error = await refusal(denoiser, asked(0, ink=1))

    assert (error.code, error.message) == (
        grpc.StatusCode.NOT_FOUND,
        "there is no LoRA 'ink'; this server has none",
    )


async def test_a_file_that_does_not_fit_is_a_failed_precondition(with_folder: DenoiserSettings) -> None:
    async with serving(with_folder) as denoiser:
        error = await refusal(denoiser, asked(0, wrong=1))

    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.message.startswith("the LoRA 'wrong' cannot be used: ")
    assert f"{Q} lacks its up part" in error.message


@pytest.mark.parametrize(
    ("loras", "sentence"),
    [
        ([Lora(name="ink", weight=11)], "loras[0].weight: is 11; allowed are -10 to 10"),
        ([Lora(name="ink", weight=float("nan"))], "loras[0].weight: is nan; allowed are -10 to 10"),
        ([Lora(name="ink"), Lora(name="ink")], "loras[1].name: 'ink' is named twice"),
        ([Lora(name=str(n)) for n in range(9)], "loras: 9 of them; allowed are 0 to 8"),
    ],
)
async def test_bad_loras_are_refused(loras: list[Lora], sentence: str, with_folder: DenoiserSettings) -> None:
    predict = asked(0)
    predict.loras.extend(loras)
    async with serving(with_folder) as denoiser:
        error = await refusal(denoiser, predict)

    assert (error.code, error.message) == (grpc.StatusCode.INVALID_ARGUMENT, sentence)


async def test_the_weight_is_one_if_nothing_is_said(with_folder: DenoiserSettings) -> None:
    predict = asked(0)
    predict.loras.add(name="ink")
    async with serving(with_folder) as denoiser:
        assert (await answer(denoiser, predict)).velocities == (
            await answer(denoiser, asked(0, ink=1))
        ).velocities


async def test_a_file_that_changed_is_loaded_again_and_one_that_is_gone_is_unknown(
    with_folder: DenoiserSettings, folder: Path
) -> None:
    async with serving(with_folder) as denoiser:
        first = await answer(denoiser, asked(0, ink=1))
        written(folder / "ink.safetensors", random_lora(9, rank=2))
        second = await answer(denoiser, asked(0, ink=1))
        (folder / "ink.safetensors").unlink()
        gone = await refusal(denoiser, asked(0, ink=1))

    assert first.velocities != second.velocities
    assert first.fingerprint != second.fingerprint
    assert gone.code is grpc.StatusCode.NOT_FOUND


async def test_loras_beyond_the_cache_are_loaded_again(
    with_folder: DenoiserSettings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 1000 is 1 MB, so that a MB holds one."""
    for name, seed in (("a", 1), ("b", 2)):
        written(folder / f"{name}.safetensors", random_lora(seed, rank=1000))
    small = with_folder.model_copy(update={"lora_cache_mb": 1})
    with caplog.at_level(logging.INFO):
        async with serving(small) as denoiser:
            answers = [await answer(denoiser, asked(0, **{name: 0.01})) for name in "aabab"]

    loaded = [record.args[0] for record in caplog.records if record.msg.startswith("loaded the LoRA")]  # type: ignore[index]
    assert loaded == ["a", "b", "a", "b"]
    assert answers[0].velocities == answers[1].velocities == answers[3].velocities


async def test_a_bfloat16_model_takes_them(with_folder: DenoiserSettings) -> None:
    async with serving(with_folder.model_copy(update={"dtype": "bfloat16"})) as half:
        rounded = velocities(await answer(half, asked(0, ink=1)))
        plain = velocities(await answer(half, asked(0)))
    async with serving(with_folder) as denoiser:
        exact = velocities(await answer(denoiser, asked(0, ink=1)))

    assert (rounded - exact).abs().max() < 0.25 * (plain - exact).abs().max()


async def test_quantized_weights_take_them_per_request_and_at_start(with_folder: DenoiserSettings) -> None:
    """Those at start are fused before the weights are quantized."""
    quantized = with_folder.model_copy(update={"quantization": "int8-weight-only"})
    async with serving(with_folder) as denoiser:
        exact = velocities(await answer(denoiser, asked(0, ink=1)))
        plain = velocities(await answer(denoiser, asked(0)))
    async with serving(quantized) as denoiser:
        per_request = velocities(await answer(denoiser, asked(0, ink=1)))
    async with serving(quantized.model_copy(update={"lora": ["ink=1"]})) as denoiser:
        at_start = velocities(await answer(denoiser, asked(0)))

    change = (plain - exact).abs().max()
    assert 0 < (per_request - exact).abs().max() < 0.1 * change
    assert 0 < (at_start - exact).abs().max() < 0.1 * change


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"lora": ["tempera=1"]},
            "--lora: there is no LoRA 'tempera'; there are: ink, oil paint",
        ),
        ({"lora": ["/no/such.safetensors=1"]}, "/no/such.safetensors is missing"),
        ({"lora": ["ink", "wrong=0.5"]}, "wrong.safetensors is no LoRA for this transformer"),
        ({"lora_folder": Path("/no/folder")}, "--lora-folder: there is no folder /no/folder"),
    ],
)
async def test_what_cannot_be_fused_or_served_is_refused_at_start(
    options: dict[str, Any], sentence: str, with_folder: DenoiserSettings
) -> None:
    with pytest.raises(StartError) as caught:
        async with serving(with_folder.model_copy(update=options)):
            pass
    assert sentence in str(caught.value)
