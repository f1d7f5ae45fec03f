"""Rows of different sizes and text lengths in one pass: each has the bits that it has alone."""

import asyncio
import itertools
import logging
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.denoiser.serving import Denoiser, Prompt, random_latents, request
from tests.denoiser.small_families import (
    FILL,
    FLUX,
    FLUX2,
    FLUX3,
    FLUX3_FLOW_MAP,
    KREA2,
    QWEN_IMAGE,
    QWEN_IMAGE21,
    SD3,
    Z_IMAGE,
    Config,
    random_transformer,
)
from triptych.tensors import message_to_torch
from triptych_denoiser.conditioning import Conditioning, Reference
from triptych_denoiser.models.streams import EqualRows, MixedRows, streams
from triptych_denoiser.predictor import Predictor, create_predictor
from triptych_denoiser.row import Row
from triptych_denoiser.settings import DenoiserOptions

CPU = torch.device("cpu")
FAMILIES: dict[str, Config] = {
    "SD3": SD3,
    "SD3.5": {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 2)},
    "FLUX with guidance": FLUX,
    "FLUX.1 Fill": FILL,
    "FLUX.2": FLUX2,
    "FLUX.3": FLUX3,
    "FLUX.3, a flow map": FLUX3_FLOW_MAP,
    "Krea 2": KREA2,
    "Qwen-Image": QWEN_IMAGE,
    "Qwen-Image-Edit-2511": {**QWEN_IMAGE, "zero_cond_t": True},
    "Qwen-Image 2.1": QWEN_IMAGE21,
    "Z-Image": Z_IMAGE,
}
Shape = tuple[int, int, int, int]
"""Latent height and width, text tokens, how many the last of them stands for."""
SHAPES: list[Shape] = [
    (8, 8, 5, 1),
    (6, 16, 5, 1),
    (16, 6, 40, 1),
    (8, 8, 5, 256),
    (8, 8, 1, 1),
    (2, 4, 5, 3),
]


def predictor_of(family: str, dtype: torch.dtype) -> Predictor:
    model = random_transformer(FAMILIES[family], dtype)
    return create_predictor(model, CPU, dtype, DenoiserOptions())


@pytest.fixture(scope="module", params=FAMILIES)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    """Of each family, in float32."""
    return predictor_of(request.param, torch.float32)


def row(predictor: Predictor, shape: Shape, seed: int = 0, **others: Any) -> Row:
    """A random row; one without text positions has its repeats."""
    inputs, generator = predictor.model.inputs, torch.Generator().manual_seed(seed)
    height, width, tokens, repeats = shape
    sequence = torch.randn(tokens, inputs.joint_attention_dim, generator=generator).to(predictor.dtype)
    pooled = torch.randn(inputs.pooled_projection_dim, generator=generator).to(predictor.dtype)
    latents = torch.randn(inputs.channels, height, width, generator=generator)
    sigma, scale = torch.rand(2, generator=generator).tolist()
    places = range(len(others.get("references", ()))) if inputs.references_in_text else ()
    conditioning = Conditioning(sequence, pooled, 1 if inputs.text_positions else repeats, tuple(places))
    if inputs.reference_same_size:
        masked = torch.randn(inputs.reference_channels, height, width, generator=generator)
        others["references"] = (Reference(masked.to(predictor.dtype)),)
    if inputs.target_sigma:
        others["target_sigma"] = sigma * scale
    return Row(latents, sigma, conditioning, 10 * scale if inputs.guidance else None, **others)


def assert_as_alone(predictor: Predictor, rows: list[Row]) -> None:
    assert len({predictor.group(row) for row in rows}) == 1
    together = predictor.predict(rows).velocities
    for velocity, alone in zip(together, rows, strict=True):
        assert velocity.shape == alone.latents.shape
        assert torch.equal(velocity, predictor.predict([alone]).velocities[0])


needs_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="this torch has no MKL whose kernels are fixed"
)


@needs_mkl
def test_rows_of_any_shape_have_the_bits_of_alone(predictor: Predictor) -> None:
    assert_as_alone(predictor, [row(predictor, shape, seed) for seed, shape in enumerate(SHAPES)])


@needs_mkl
def test_equal_rows_among_others_have_the_bits_of_alone(predictor: Predictor) -> None:
    shapes = [SHAPES[index] for index in (0, 1, 0, 3, 1, 0)]
    assert_as_alone(predictor, [row(predictor, shape, seed) for seed, shape in enumerate(shapes)])


@needs_mkl
@pytest.mark.parametrize("layers", [{"skipped_layers": (1,)}, {"perturbed_layers": (0, 1, 2)}])
def test_rows_of_a_weakened_model_have_the_bits_of_alone(
    predictor: Predictor, layers: dict[str, tuple[int, ...]]
) -> None:
    rows = [row(predictor, shape, seed, **layers) for seed, shape in enumerate(SHAPES)]
    assert_as_alone(predictor, rows)
    plain = [row(predictor, shape, seed) for seed, shape in enumerate(SHAPES)]
    weakened = predictor.predict(rows).velocities
    assert not any(map(torch.equal, weakened, predictor.predict(plain).velocities))


@needs_mkl
@pytest.mark.parametrize("layers", [{}, {"perturbed_layers": (0, 1)}])
def test_rows_of_different_references_have_the_bits_of_alone(
    predictor: Predictor, layers: dict[str, tuple[int, ...]]
) -> None:
    if predictor.model.inputs.max_references == 0 or predictor.model.inputs.reference_same_size:
        pytest.skip("these rows have no references of their own sizes")
    sizes: list[list[tuple[int, int]]] = [[(8, 8)], [(8, 8)], [(4, 10)], [(2, 2)], []]
    if predictor.model.inputs.max_references > 1:
        sizes += [[(4, 10), (8, 8)], [(8, 8), (4, 10)]]
    pictures = [tuple(picture(predictor, size, seed) for size in one) for seed, one in enumerate(sizes)]
    rows = [
        row(predictor, SHAPES[seed % 2], 0, references=one, **layers) for seed, one in enumerate(pictures)
    ]
    assert_as_alone(predictor, rows)
    together = predictor.predict(
        [row(predictor, SHAPES[0], 0, references=one) for one in pictures]
    ).velocities
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(together, 2))


def picture(predictor: Predictor, size: tuple[int, int], seed: int) -> Reference:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(predictor.model.inputs.reference_channels, *size, generator=generator)
    return Reference(latents.to(predictor.dtype))


some_shapes = st.lists(
    st.tuples(
        st.sampled_from([2, 4, 6, 10, 24]),
        st.sampled_from([2, 8, 12]),
        st.integers(1, 70),
        st.sampled_from([1, 2, 256]),
    ),
    min_size=2,
    max_size=6,
)


@needs_mkl
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_shapes, st.integers(0, 1000))
def test_random_mixes_have_the_bits_of_alone(predictor: Predictor, shapes: list[Shape], seed: int) -> None:
    assert_as_alone(predictor, [row(predictor, shape, seed + k) for k, shape in enumerate(shapes)])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_bfloat16_have_the_bits_of_alone_where_that_is_promised(family: str) -> None:
    predictor = predictor_of(family, torch.bfloat16)
    rows = [row(predictor, SHAPES[k % len(SHAPES)], k) for k in range(9)]
    if not predictor.mixes:
        assert len({predictor.group(row) for row in rows}) == len({row.shape for row in rows})
        pytest.skip("on this machine rows would round differently in a mixed pass")
    assert_as_alone(predictor, rows)


def test_rows_share_passes_with_their_like_alone_unless_sizes_mix(predictor: Predictor) -> None:
    rows = [row(predictor, shape) for shape in SHAPES[:2]]
    apart = Predictor(predictor.model, CPU, torch.float32, 16, mixes=False)
    assert len({predictor.group(row) for row in rows}) == 1
    assert len({apart.group(row) for row in rows}) == 2
    weakened = [row(predictor, SHAPES[0], **{kind: (1,)}) for kind in ("skipped_layers", "perturbed_layers")]
    assert len({predictor.group(row) for row in (*rows, *weakened)}) == 3


def test_rows_in_any_order_get_their_own_velocities(predictor: Predictor) -> None:
    rows = [row(predictor, SHAPES[k % 3], k) for k in range(7)]
    forwards, backwards = predictor.predict(rows).velocities, predictor.predict(rows[::-1]).velocities
    for one, other in zip(forwards, reversed(backwards), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def tokens_of(*shapes: tuple[int, int]) -> list[Tensor]:
    """[rows, tokens, 3] for each group."""
    return [torch.randn(rows, tokens, 3) for rows, tokens in shapes]


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize("shapes", [((2, 3),), ((2, 3), (1, 1), (3, 5))])
def test_what_is_joined_is_cut_again(shapes: tuple[tuple[int, int], ...], image_first: bool) -> None:
    images, texts = tokens_of(*shapes), tokens_of(*((rows, tokens + 2) for rows, tokens in shapes))
    rows = streams(images, texts, image_first=image_first)
    image, text = rows.image.pack(images), rows.text.pack(texts)
    joined = rows.join(image, text)
    for both, *parts in zip(joined, images, texts, strict=True):
        assert torch.equal(both, torch.cat(parts if image_first else parts[::-1], dim=1))
    assert all(map(torch.equal, rows.cut(joined), (image, text)))


@pytest.mark.parametrize("heads", [(), (4,)])
def test_groups_are_views_of_what_was_packed(heads: tuple[int, ...]) -> None:
    stream, packed = MixedRows((2, 1), (3, 4)), torch.randn(1, *heads, 10, 5)
    first, second = stream.groups(packed)
    assert (first.shape, second.shape) == ((2, *heads, 3, 5), (1, *heads, 4, 5))
    assert torch.equal(first[1], packed[0, ..., 3:6, :])
    assert torch.equal(second[0], packed[0, ..., 6:, :])
    packed.zero_()
    assert not first.any()
    assert not second.any()


def test_what_a_row_has_for_its_tokens_goes_to_them() -> None:
    groups, scales = tokens_of((2, 3), (1, 4)), torch.randn(3, 1, 3)
    mixed = MixedRows((2, 1), (3, 4))
    expected = [groups[0] * scales[:2], groups[1] * scales[2:]]
    assert torch.equal(mixed.apply(torch.mul, mixed.pack(groups), scales), mixed.pack(expected))
    assert torch.equal(EqualRows((3,)).apply(torch.mul, groups[0], scales[:2]), expected[0])


async def test_calls_of_several_sizes_and_steps_have_the_bits_of_alone(
    denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    """Over a real socket, four clients at once, each with its own picture and number of steps."""
    caplog.set_level(logging.DEBUG, "triptych_denoiser.batcher")
    prompts = [Prompt.random(seed, tokens=tokens) for seed, tokens in enumerate((4, 9, 4, 30))]
    for prompt in prompts:
        await denoiser.stub.PutConditioning(prompt.upload())

    async def picture(client: int) -> Tensor:
        """By so many Euler steps."""
        latents, steps = random_latents(client, 1 + client % 2, *SIZES[client]), 4 + 3 * client
        for step in range(steps):
            branch = [prompts[client]] * len(latents)
            sigmas = [1 - step / steps] * len(latents)
            answer = await denoiser.stub.Predict(request(latents, sigmas, [branch]))
            latents = latents - message_to_torch(answer.velocities, "velocities")[0] / steps
        return latents

    alone = [await picture(client) for client in range(4)]
    assert not mixed_passes(caplog)
    together = await asyncio.gather(*map(picture, range(4)))

    assert all(map(torch.equal, together, alone))
    assert mixed_passes(caplog)


SIZES = ((8, 8), (12, 8), (8, 12), (16, 16))


def mixed_passes(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the batcher said of passes of several sizes."""
    passes = [message for message in caplog.messages if message.startswith("rows: ")]
    return [message for message in passes if message.count(" of ") > 1]
