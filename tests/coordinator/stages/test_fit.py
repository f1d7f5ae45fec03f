"""Whether the stages fit together."""

import pytest

from triptych.errors import TriptychError
from triptych.families.family import GuidanceInput
from triptych.v1 import denoiser_pb2, model_pb2, text_encoder_pb2, vae_codec_pb2
from triptych_coordinator.stages.fit import Models


def models_at(text_encoder: str, denoiser: str, vae_codec: str) -> Models:
    """Three stages that serve these commits of one model."""
    infos = [model_pb2.ModelInfo(name="m", revision=commit) for commit in (text_encoder, denoiser, vae_codec)]
    return Models(
        text_encoder_pb2.TextEncoderServiceGetModelResponse(model=infos[0]),
        denoiser_pb2.DenoiserServiceGetModelResponse(model=infos[1]),
        vae_codec_pb2.VaeCodecServiceGetModelResponse(model=infos[2]),
    )


@pytest.mark.parametrize(
    ("revision", "stages"), [("a", "aaa"), ("", "bbb"), ("a", ("", "a", "")), ("", ("",) * 3)]
)
def test_stages_of_one_commit_fit_and_folders_have_none(revision: str, stages: tuple[str, str, str]) -> None:
    models_at(*stages).check_fit("m", revision, GuidanceInput.BRANCHES)


@pytest.mark.parametrize(
    ("revision", "stages", "says"),
    [
        ("a", "aba", "revisions differ: a in the coordinator, a in the text encoder, b in the denoiser"),
        ("b", ("a", "", ""), "revisions differ: b in the coordinator, a in the text encoder"),
        ("", ("", "a", "b"), "revisions differ: a in the denoiser, b in the VAE codec"),
    ],
)
def test_mixed_revisions_are_noticed(revision: str, stages: tuple[str, str, str], says: str) -> None:
    with pytest.raises(TriptychError, match=says):
        models_at(*stages).check_fit("m", revision, GuidanceInput.BRANCHES)


@pytest.mark.parametrize(
    ("promises", "together"),
    [
        (("batch-invariant",) * 3, "batch-invariant"),
        (("batch-invariant", "fast", "batch-invariant"), "fast"),
        (("", "batch-invariant", "batch-invariant"), "fast"),
    ],
)
def test_the_stages_promise_what_the_least_of_them_does(
    promises: tuple[str, str, str], together: str
) -> None:
    models = models_at("", "", "")
    for stage, promise in zip(
        (models.text_encoder, models.denoiser, models.vae_codec), promises, strict=True
    ):
        stage.model.determinism = promise
    assert models.determinism == together
