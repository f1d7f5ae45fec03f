"""What the coordinator reads of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import StartError, TriptychError
from triptych.v1 import denoiser_pb2, model_pb2, text_encoder_pb2, vae_codec_pb2
from triptych_coordinator.models import Defaults, Models
from triptych_coordinator.sigmas import FlowSchedule


@pytest.mark.parametrize(
    "option",
    [
        "use_dynamic_shifting",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "invert_sigmas",
        "stochastic_sampling",
    ],
)
def test_an_unsupported_scheduler_option_is_refused(option: str) -> None:
    assert FlowSchedule.from_config({"shift": 3.0, option: False}) == FlowSchedule(3.0)
    with pytest.raises(StartError, match=option):
        FlowSchedule.from_config({"shift": 3.0, option: True})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ({"shift_terminal": 0.1}, "shift_terminal"),
        ({"num_train_timesteps": 500}, "500"),
        ({"shift": 0}, "shift"),
        ({"shift": float("nan")}, "shift"),
        ({"shift": "much"}, "shift"),
    ],
)
def test_a_scheduler_that_cannot_be_followed_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(StartError, match=says):
        FlowSchedule.from_config(config)


def test_a_checkpoint_may_name_its_defaults(tmp_path: Path) -> None:
    assert Defaults.from_folder(tmp_path) == Defaults(28, 7.0)
    (tmp_path / "triptych.json").write_text(json.dumps({"default_guidance_scale": 5}))
    assert Defaults.from_folder(tmp_path) == Defaults(28, 5.0)
    (tmp_path / "triptych.json").write_text(json.dumps({"default_num_inference_steps": 12}))
    assert Defaults.from_folder(tmp_path) == Defaults(12, 7.0)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[1]",
        '{"default_num_inference_steps": 0}',
        '{"default_num_inference_steps": null}',
        '{"default_guidance_scale": NaN}',
        '{"default_guidance_scale": -1}',
    ],
)
def test_wrong_defaults_are_refused_with_the_file_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "triptych.json").write_text(text)
    with pytest.raises(StartError, match=r"triptych\.json"):
        Defaults.from_folder(tmp_path)


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
    models_at(*stages).check_fit("m", revision)


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
        models_at(*stages).check_fit("m", revision)
