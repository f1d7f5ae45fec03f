"""What the fields of a request, each right by itself, may not be together."""

from triptych.families.family import GuidanceInput
from triptych_coordinator.request.choices import Wrong
from triptych_coordinator.request.output_formats import JpegFormat, fits_jpeg
from triptych_coordinator.request.parameters import Limits, Parameters
from triptych_coordinator.request.record import record_text
from triptych_coordinator.sampling.guidance.methods import AdaptiveProjectedGuidance


def check_together(parameters: Parameters, limits: Limits, wrong: Wrong) -> None:
    """`wrong` gets what is wrong: a field's path, what it must be."""
    _check_pixels(parameters, limits, wrong)
    _check_guidance(parameters, limits.guidance, wrong)
    _check_sampling(parameters, wrong)
    _check_record(parameters, wrong)


def _check_pixels(parameters: Parameters, limits: Limits, wrong: Wrong) -> None:
    image = parameters.height * parameters.width
    if image > limits.max_image_pixels:
        wrong["height"] = f"height x width must be at most {limits.max_image_pixels}, not {image}"
    elif image * len(parameters.seeds) > limits.max_request_pixels:
        wrong["num_images_per_prompt"] = (
            f"all pictures together must have at most {limits.max_request_pixels} pixels,"
            f" not {image * len(parameters.seeds)}"
        )


def _check_sampling(parameters: Parameters, wrong: Wrong) -> None:
    """Refuses what solvers and sizes do not allow."""
    if parameters.progressive_resolution is not None and parameters.edit is not None:
        wrong["progressive_resolution"] = (
            "must not be set with image or latents.clean: the details that they begin with have no place in a"
            " smaller size"
        )
    method = parameters.guidance_method
    if parameters.solver.chooses_steps and isinstance(method, AdaptiveProjectedGuidance) and method.momentum:
        wrong["guidance_method.adaptive_projected.momentum"] = (
            "must be 0 with the adaptive solver, which would remember the steps that it rejects,"
            f" not {method.momentum:g}"
        )


def _check_record(parameters: Parameters, wrong: Wrong) -> None:
    """Refuses a file that cannot say how it was made."""
    if isinstance(parameters.output_format, JpegFormat) and not all(
        fits_jpeg(record_text(parameters, image, {})) for image in range(len(parameters.seeds))
    ):
        wrong["output_format"] = "must be webp or png: a JPEG file has no room for texts as long as these"


def _check_guidance(parameters: Parameters, guidance: GuidanceInput, wrong: Wrong) -> None:
    """Refuses what the model cannot do, whatever the rest of the request is."""
    scales = parameters.guidance_scales()
    if guidance is GuidanceInput.NONE and max(scales) > 1:
        field = "guidance_scale" if parameters.guidance_scale > 1 else "guidance_schedule"
        wrong[field] = (
            "this model was distilled to do without guidance: leave it out, or make the scale 1 or"
            f" less, which means none, not {max(scales):g}"
        )
    if guidance is not GuidanceInput.BRANCHES and not parameters.guided(guidance):
        _check_no_branches(parameters, wrong)


def _check_no_branches(parameters: Parameters, wrong: Wrong) -> None:
    if any(parameters.negative_prompts):
        wrong["negative_prompts"] = (
            "this model's guidance is distilled, and it computes the prompt's branch alone: a negative prompt"
            " steers it with a true_cfg_scale above 1, which doubles the work"
        )
    reason = (
        "this model's guidance is distilled, and it computes the prompt's branch alone: there is another to"
        " join with it if true_cfg_scale is above 1"
    )
    if parameters.guidance_method is not None:
        wrong["guidance_method"] = reason
    if parameters.compositions:
        wrong["compositions"] = reason
    if parameters.guidance_rescale and not parameters.layer_guidances:
        wrong["guidance_rescale"] = (
            "this model's guidance is distilled, and only what skip_layer_guidance,"
            " perturbed_attention_guidance or true_cfg_scale add could be rescaled: choose one of them"
        )
