"""--compile: nearly the same pixels, for every size."""

import logging

import pytest
import torch

from tests.compiling import graphs, trace_alone
from triptych_vae_codec.codec import VaeCodec
from triptych_vae_codec.servicer import create_servicer
from triptych_vae_codec.settings import VaeCodecSettings


async def test_a_compiled_codec_gives_the_same_pictures_and_compiles_for_no_further_size(
    settings: VaeCodecSettings,
    codec: VaeCodec,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace_alone(monkeypatch)
    caplog.set_level(logging.INFO)
    servicer = create_servicer(settings, settings.model_copy(update={"compile": True}))
    assert "compiled for pictures of about 64 x 64 pixels and other sizes in" in caplog.text

    warm = graphs()
    for height, width in ((8, 8), (6, 11), (9, 7)):
        latents = torch.randn(1, 4, height, width)
        pixels = servicer._codec.decode(latents)
        assert (pixels.int() - codec.decode(latents).int()).abs().max() <= 1
        means = servicer._codec.encode(pixels)[0], codec.encode(pixels)[0]
        torch.testing.assert_close(*means, rtol=1e-3, atol=1e-4)
    assert warm > 0
    assert graphs() == warm
