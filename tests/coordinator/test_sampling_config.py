"""How checkpoints are sampled, and which are refused."""

import json
import math
from pathlib import Path

import pytest

from tests.coordinator.conftest import write_checkpoint
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.errors import StartError
from triptych.families import mag_ratios, qwen_image, teacache
from triptych.families.family import GuidanceInput
from triptych_coordinator.sampling.guidance.methods import NormPreservingGuidance
from triptych_coordinator.sampling.sigmas import DynamicShift, EmpiricalShift, FixedMu, FlowSchedule, Grid
from triptych_coordinator.sampling_config import sampling_of


def settings(folder: Path, text: str, pipeline: str = "StableDiffusion3Pipeline") -> Checkpoint:
    checkpoint = write_checkpoint(folder, pipeline)
    (folder / "triptych.json").write_text(text)
    return checkpoint


@pytest.mark.parametrize(
    ("pipeline", "guidance_embeds", "guidance", "steps", "scale", "grid"),
    [
        ("StableDiffusion3Pipeline", False, GuidanceInput.BRANCHES, 28, 7.0, Grid.TRAINING),
        ("FluxPipeline", True, GuidanceInput.EMBEDDED, 28, 3.5, Grid.EVEN),
        ("FluxPipeline", False, GuidanceInput.NONE, 4, 1.0, Grid.EVEN),
        ("Flux2KleinPipeline", False, GuidanceInput.BRANCHES, 50, 4.0, Grid.EVEN),
        ("Flux2Pipeline", True, GuidanceInput.EMBEDDED, 50, 4.0, Grid.EVEN),
        ("Krea2Pipeline", False, GuidanceInput.BRANCHES, 28, 5.5, Grid.EVEN),
        ("QwenImagePipeline", False, GuidanceInput.BRANCHES, 50, 4.0, Grid.EVEN),
        ("QwenImage21Pipeline", False, GuidanceInput.BRANCHES, 40, 1.0, Grid.EVEN),
        ("ZImagePipeline", False, GuidanceInput.BRANCHES, 50, 6.0, Grid.EVEN_BY_TORCH),
    ],
)
def test_a_pipeline_decides_what_the_configs_do_not_say(
    pipeline: str,
    guidance_embeds: bool,
    guidance: GuidanceInput,
    steps: int,
    scale: float,
    grid: Grid,
    tmp_path: Path,
) -> None:
    sampling = sampling_of(write_checkpoint(tmp_path, pipeline, guidance_embeds, shift=2.5))
    assert (sampling.guidance, sampling.num_inference_steps, sampling.guidance_scale) == (
        guidance,
        steps,
        scale,
    )
    assert sampling.schedule == FlowSchedule(2.5, None, grid)


def test_the_schedule_is_the_checkpoints(tmp_path: Path) -> None:
    config = {"use_dynamic_shifting": True, "max_shift": 1.3, "shift_terminal": 0.02}
    sampling = sampling_of(write_checkpoint(tmp_path, "FluxPipeline", True, **config))
    assert sampling.schedule == FlowSchedule(DynamicShift(max_shift=1.3), 0.02, Grid.EVEN)


@pytest.mark.parametrize(
    ("pipeline", "embeds"),
    [
        ("PixArtSigmaPipeline", False),
        ("ZImagePipeline", True),
        ("Flux2KleinPipeline", True),
        ("Flux2Pipeline", False),
    ],
)
def test_another_pipeline_is_refused(pipeline: str, embeds: bool, tmp_path: Path) -> None:
    says = "supported are StableDiffusion3Pipeline, .*, ZImagePipeline"
    with pytest.raises(StartError, match=f"is a {pipeline}; {says}"):
        sampling_of(write_checkpoint(tmp_path, pipeline, embeds))


@pytest.mark.parametrize(
    ("name", "shift"), [("krea2-turbo", FixedMu(1.15)), ("mine", DynamicShift(max_image_seq_len=6400))]
)
def test_krea2_turbos_mu_is_the_same_for_every_picture(
    name: str, shift: DynamicShift | FixedMu, tmp_path: Path
) -> None:
    config = {"use_dynamic_shifting": True, "max_image_seq_len": 6400}
    schedule = sampling_of(write_checkpoint(tmp_path / name, "Krea2Pipeline", **config)).schedule
    assert schedule == FlowSchedule(shift, None, Grid.EVEN)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen-Image-Lightning-8steps", FlowSchedule(FixedMu(math.log(3)), None, Grid.EVEN)),
        ("mine", FlowSchedule(DynamicShift(max_image_seq_len=8192, max_shift=0.9), 0.02, Grid.EVEN)),
    ],
)
def test_lightnings_levels_are_the_same_for_every_picture_and_end_where_they_do(
    name: str, expected: FlowSchedule, tmp_path: Path
) -> None:
    config = {"use_dynamic_shifting": True, **{key: qwen_image.SCHEDULER[key] for key in KEYS}}
    assert sampling_of(write_checkpoint(tmp_path / name, "QwenImagePipeline", **config)).schedule == expected


KEYS = ("max_shift", "max_image_seq_len", "shift_terminal")


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["ink", "lightning/Qwen-Image-2512-Lightning-8steps-V1.0-bf16"], 8),
        (["qwen_image_lightning_4steps"], 4),
    ],
)
def test_a_lora_of_lightning_makes_a_model_of_few_steps(names: list[str], steps: int, tmp_path: Path) -> None:
    config = {"use_dynamic_shifting": True, **{key: qwen_image.SCHEDULER[key] for key in KEYS}}
    sampling = sampling_of(write_checkpoint(tmp_path, "QwenImagePipeline", **config))
    distilled = sampling.with_loras(names)
    assert (sampling.mag_ratios, distilled.mag_ratios) == (mag_ratios.QWEN_IMAGE, ())
    assert (distilled.num_inference_steps, distilled.guidance_scale) == (steps, 1.0)
    assert distilled.schedule == FlowSchedule(FixedMu(math.log(3)), None, Grid.EVEN)
    assert sampling.with_loras(["ink", "lightning"]) == sampling


@pytest.mark.parametrize("pipeline", ["StableDiffusion3Pipeline", "QwenImagePipeline"])
def test_a_checkpoint_may_name_loras_that_distil_it_at_its_own_levels(pipeline: str, tmp_path: Path) -> None:
    sampling = sampling_of(settings(tmp_path, '{"distilling_loras": {"four-steps": 4}}', pipeline))
    distilled = sampling.with_loras(["ink", "fast/mine_four_steps"])
    assert (distilled.num_inference_steps, distilled.guidance_scale) == (4, 1.0)
    assert distilled.schedule == sampling.schedule
    assert sampling.with_loras(["ink", "four", "twenty-four-stepsons"]) == sampling


@pytest.mark.parametrize("named", [["four-steps"], {"a": 0}, {"a": "4"}, {"a": True}, {"a": 4.0}, {"a": 201}])
def test_loras_that_distil_to_no_number_of_steps_are_refused(named: object, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="distilling_loras must give names of LoRAs"):
        sampling_of(settings(tmp_path, json.dumps({"distilling_loras": named})))


def test_other_families_have_no_such_loras(tmp_path: Path) -> None:
    sampling = sampling_of(write_checkpoint(tmp_path, "ZImagePipeline"))
    assert sampling.with_loras(["z-image-turbo-ink", "qwen-image-lightning-4steps"]) == sampling


def test_qwen_image_has_a_guidance_and_a_negative_prompt_of_its_own(tmp_path: Path) -> None:
    sampling = sampling_of(write_checkpoint(tmp_path, "QwenImagePipeline"))
    assert (sampling.guidance_method, sampling.negative_prompt) == (NormPreservingGuidance(), " ")


def with_sample_sigmas(folder: Path, named: object) -> Checkpoint:
    write_checkpoint(folder, "QwenImage21Pipeline", shift=1.0)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_sigmas": named}))
    return Checkpoint(folder)


def test_levels_that_a_model_was_distilled_to_are_those_of_as_many_steps(tmp_path: Path) -> None:
    sampling = sampling_of(with_sample_sigmas(tmp_path, [1, 0.9, 0.25]))
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (3, 1.0)
    assert sampling.schedule.sigmas(3, image_tokens=16) == pytest.approx([1, 0.9, 0.25, 0])
    assert sampling.schedule.sigmas(2, image_tokens=16) == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize(
    "named", [[], [0.5, 0.9], [1.5, 0.5], [1, 0.5, 0], ["1"], 8, [1 - k / 300 for k in range(201)]]
)
def test_levels_that_are_none_are_refused(named: object, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="must list at most 200 levels that fall from at most 1 to above 0"):
        sampling_of(with_sample_sigmas(tmp_path, named))


def test_flux2s_shift_follows_tokens_and_steps(tmp_path: Path) -> None:
    config = {"use_dynamic_shifting": True, "time_shift_type": "linear"}
    sampling = sampling_of(write_checkpoint(tmp_path, "Flux2KleinPipeline", **config))
    assert sampling.schedule == FlowSchedule(EmpiricalShift("linear"), None, Grid.EVEN)


@pytest.mark.parametrize(
    ("is_distilled", "guidance", "steps", "scale"),
    [(True, GuidanceInput.NONE, 4, 1.0), (False, GuidanceInput.BRANCHES, 50, 4.0)],
)
def test_a_distilled_model_is_known_by_its_index(
    is_distilled: bool, guidance: GuidanceInput, steps: int, scale: float, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "mine", "Flux2KleinPipeline")
    checkpoint.index["is_distilled"] = is_distilled
    sampling = sampling_of(checkpoint)
    assert (sampling.guidance, sampling.num_inference_steps, sampling.guidance_scale) == (
        guidance,
        steps,
        scale,
    )


@pytest.mark.parametrize("flow_map", [False, True])
def test_flux3s_scheduler_is_made_where_the_index_names_none(flow_map: bool, tmp_path: Path) -> None:
    pipeline = "Flux3DistilledModularPipeline" if flow_map else "Flux3ModularPipeline"
    checkpoint = write_checkpoint(tmp_path, pipeline, flow_map=flow_map)
    assert sampling_of(checkpoint).schedule == FlowSchedule(3.0, None, Grid.EVEN)
    del checkpoint.index["scheduler"]
    sampling = sampling_of(checkpoint)
    assert sampling.schedule == FlowSchedule(6.93, None, Grid.EVEN)
    defaults = (sampling.guidance, sampling.num_inference_steps, sampling.guidance_scale)
    distilled, base = (GuidanceInput.NONE, 16, 1.0), (GuidanceInput.BRANCHES, 50, 3.5)
    assert defaults == (distilled if flow_map else base)
    checkpoint.index["_class_name"] = "Flux3ModularPipeline" if flow_map else "Flux3DistilledModularPipeline"
    with pytest.raises(StartError, match="supported are"):
        sampling_of(checkpoint)


def test_a_checkpoint_may_name_its_defaults(tmp_path: Path) -> None:
    scale = sampling_of(settings(tmp_path / "a", json.dumps({"default_guidance_scale": 5})))
    assert (scale.num_inference_steps, scale.guidance_scale) == (28, 5.0)
    steps = sampling_of(settings(tmp_path / "b", json.dumps({"default_num_inference_steps": 12})))
    assert (steps.num_inference_steps, steps.guidance_scale) == (12, 7.0)
    ratios = sampling_of(settings(tmp_path / "c", '{"mag_ratios": [1, 1.2]}', "QwenImagePipeline"))
    assert ratios.mag_ratios == (1.0, 1.2)


@pytest.mark.parametrize(
    ("pipeline", "guidance_embeds", "ratios", "coefficients"),
    [
        ("FluxPipeline", True, mag_ratios.FLUX_1_DEV, teacache.FLUX_1_DEV),
        ("FluxPipeline", False, (), ()),
        ("FluxKontextPipeline", True, mag_ratios.FLUX_1_KONTEXT_DEV, teacache.FLUX_1_KONTEXT_DEV),
        ("FluxFillPipeline", True, (), ()),
        ("QwenImagePipeline", False, mag_ratios.QWEN_IMAGE, ()),
        ("QwenImageEditPipeline", False, mag_ratios.QWEN_IMAGE_EDIT, ()),
        ("QwenImageEditPlusPipeline", False, (), ()),
        ("StableDiffusion3Pipeline", False, (), ()),
    ],
)
def test_what_reuse_needs_is_known_of_the_models_that_it_was_measured_on(
    *, pipeline: str, guidance_embeds: bool, ratios: object, coefficients: object, tmp_path: Path
) -> None:
    sampling = sampling_of(write_checkpoint(tmp_path, pipeline, guidance_embeds))
    assert sampling.mag_ratios == ratios
    assert sampling.teacache_coefficients == coefficients


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[1]",
        '{"default_num_inference_steps": 0}',
        '{"default_num_inference_steps": null}',
        '{"default_guidance_scale": NaN}',
        '{"default_guidance_scale": -1}',
        '{"default_num_inference_steps": 4.5}',
        '{"default_num_inference_steps": "4"}',
        '{"default_num_inference_steps": true}',
        '{"default_num_inference_steps": Infinity}',
        '{"default_num_inference_steps": [4]}',
        '{"default_guidance_scale": "5"}',
        '{"default_guidance_scale": Infinity}',
        '{"mag_ratios": [1, 0]}',
        '{"mag_ratios": [1, NaN]}',
        '{"mag_ratios": [1, true]}',
        '{"mag_ratios": 1}',
        f'{{"default_guidance_scale": 1{"0" * 400}}}',
    ],
)
def test_wrong_defaults_are_refused_with_the_file_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(StartError, match=r"triptych\.json"):
        sampling_of(settings(tmp_path, text))


def test_a_model_without_guidance_has_no_default_for_it(tmp_path: Path) -> None:
    steps = sampling_of(settings(tmp_path / "a", '{"default_num_inference_steps": 2}', "FluxPipeline"))
    assert (steps.num_inference_steps, steps.guidance_scale) == (2, 1.0)
    with pytest.raises(StartError, match="must be 1 for a model without guidance, not 3"):
        sampling_of(settings(tmp_path / "b", '{"default_guidance_scale": 3}', "FluxPipeline"))


@pytest.mark.parametrize(
    ("name", "pipeline", "steps"),
    [
        ("stable-diffusion-3.5-large-turbo", "StableDiffusion3Pipeline", 4),
        ("flux-2-klein-4b-fp8", "Flux2KleinPipeline", 4),
        ("FLUX.2-klein-9B", "Flux2KleinPipeline", 4),
        ("krea2_turbo_fp8_scaled", "Krea2Pipeline", 8),
        ("Qwen-Image-2512-Lightning-8steps-V1.0", "QwenImagePipeline", 8),
        ("qwen_image_fp8_e4m3fn_scaled_lightning_4steps_v1.0", "QwenImagePipeline", 4),
        ("Z-Image-Turbo", "ZImagePipeline", 8),
    ],
)
def test_a_distilled_model_is_known_by_its_name(name: str, pipeline: str, steps: int, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / name, pipeline)
    checkpoint.name = "mine"
    sampling = sampling_of(checkpoint)
    assert (sampling.num_inference_steps, sampling.guidance_scale) == (steps, 1.0)
    own = sampling_of(settings(tmp_path / "own" / name, '{"default_num_inference_steps": 6}', pipeline))
    assert (own.num_inference_steps, own.guidance_scale) == (6, 1.0)
