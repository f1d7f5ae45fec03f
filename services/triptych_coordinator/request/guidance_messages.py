"""From the guidance fields of GenerationParameters to checked options with every default, and back."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from triptych.v1 import image_generation_pb2 as pb
from triptych_coordinator.request.guidance_options import Composition, GuidanceOptions
from triptych_coordinator.sampling.guidance.layers import (
    LayerGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)
from triptych_coordinator.sampling.guidance.methods import (
    AdaptiveProjected,
    ChosenMethod,
    ClassifierFree,
    ZeroStar,
    method_name,
)

MAX_SCALE = 100.0
MAX_WEIGHT = 10.0
MAX_ETA = 10.0
MAX_NORM_THRESHOLD = 10_000.0
MAX_ADDITIONAL_PROMPTS = 8

L = TypeVar("L", SkipLayerGuidance, PerturbedAttentionGuidance)


@dataclass(frozen=True)
class GuidanceReader:
    """Reads the fields one by one.

    number: checks the number at a path against its least and largest value, and returns it.
    check_prompt: checks the text of a prompt at a path.
    wrong: gets what is wrong: a field's path, what it must be.
    """

    number: Callable[[str, float, float, float], float]
    check_prompt: Callable[[str, str], None]
    wrong: dict[str, str]

    def options(
        self, message: pb.GenerationParameters, num_inference_steps: int, num_layers: int
    ) -> GuidanceOptions:
        """The checked options of a request for so many steps of a model with so many layers."""
        skip, perturbed = message.skip_layer_guidance, message.perturbed_attention_guidance
        return GuidanceOptions(
            method=self._method(message.guidance_method, num_inference_steps),
            rescale=self.number("guidance_rescale", message.guidance_rescale, 0, 1),
            skip_layers=self._layers("skip_layer_guidance", skip, SkipLayerGuidance, num_layers)
            if message.HasField("skip_layer_guidance")
            else None,
            perturbed_attention=self._layers(
                "perturbed_attention_guidance", perturbed, PerturbedAttentionGuidance, num_layers
            )
            if message.HasField("perturbed_attention_guidance")
            else None,
            compositions=self._compositions(message.compositions, len(message.prompts)),
        )

    def _method(self, message: pb.GuidanceMethod, num_inference_steps: int) -> ChosenMethod:
        match message.WhichOneof("method"):
            case "adaptive_projected":
                return self._adaptive_projected(message.adaptive_projected)
            case "zero_star":
                return self._zero_star(message.zero_star, num_inference_steps)
        return ClassifierFree()

    def _adaptive_projected(self, message: pb.AdaptiveProjectedGuidance) -> AdaptiveProjected:
        path, default = "guidance_method.adaptive_projected", AdaptiveProjected()
        return AdaptiveProjected(
            eta=self._optional(path, message, "eta", default.eta, -MAX_ETA, MAX_ETA),
            norm_threshold=self._optional(
                path, message, "norm_threshold", default.norm_threshold, 0, MAX_NORM_THRESHOLD
            ),
            momentum=self._optional(path, message, "momentum", default.momentum, -1, 1),
        )

    def _zero_star(self, message: pb.ZeroStarGuidance, num_inference_steps: int) -> ZeroStar:
        steps = message.zero_init_steps if message.HasField("zero_init_steps") else ZeroStar().zero_init_steps
        if not 0 <= steps < max(num_inference_steps, 1):
            self.wrong["guidance_method.zero_star.zero_init_steps"] = (
                f"must leave at least one of the {num_inference_steps} steps: 0 to {num_inference_steps - 1},"
                f" not {steps}"
            )
        return ZeroStar(steps)

    def _layers(
        self,
        path: str,
        message: pb.SkipLayerGuidance | pb.PerturbedAttentionGuidance,
        kind: type[L],
        num_layers: int,
    ) -> L:
        layers = tuple(message.layers)
        default = kind(layers)
        if num_layers == 0:
            self.wrong[path] = "the served model's layers cannot be skipped or perturbed"
        elif not layers or len(set(layers)) < len(layers):
            self.wrong[f"{path}.layers"] = "must name at least one layer, and none twice"
        for i, layer in enumerate(layers[:num_layers]):
            if not 0 <= layer < num_layers:
                self.wrong[f"{path}.layers[{i}]"] = f"must be 0 to {num_layers - 1}, not {layer}"
        start = self._optional(path, message, "start", default.start, 0, 1)
        stop = self._optional(path, message, "stop", default.stop, 0, 1)
        if stop < start:
            self.wrong[f"{path}.stop"] = f"must be at least start ({start}), not {stop}"
        scale = self._optional(path, message, "scale", default.scale, 0, MAX_SCALE)
        return kind(tuple(sorted(layers)), scale, start, stop)

    def _compositions(self, messages: Sequence[pb.Composition], prompts: int) -> tuple[Composition, ...]:
        if len(messages) not in (0, 1, prompts):
            self.wrong["compositions"] = f"must be none, one, or one per prompt ({prompts})"
            return ()
        if len({len(message.prompts) for message in messages}) > 1:
            self.wrong["compositions"] = "must all have the same number of prompts"
            return ()
        given = tuple(self._composition(f"compositions[{i}]", message) for i, message in enumerate(messages))
        return given if len(given) == prompts else given * prompts

    def _composition(self, path: str, message: pb.Composition) -> Composition:
        if not 1 <= len(message.prompts) <= MAX_ADDITIONAL_PROMPTS:
            self.wrong[f"{path}.prompts"] = f"must be 1 to {MAX_ADDITIONAL_PROMPTS} prompts"
            return Composition((), ())
        weights = []
        for i, weighted in enumerate(message.prompts):
            self.check_prompt(f"{path}.prompts[{i}].prompt", weighted.prompt)
            weights.append(self._weight(f"{path}.prompts[{i}]", weighted, "weight"))
        texts = tuple(weighted.prompt for weighted in message.prompts)
        return Composition(texts, tuple(weights), self._weight(path, message, "prompt_weight"))

    def _weight(self, path: str, message: pb.Composition | pb.WeightedPrompt, field: str) -> float:
        return self._optional(path, message, field, 1.0, -MAX_WEIGHT, MAX_WEIGHT)

    def _optional(
        self, path: str, message: Any, field: str, default: float, least: float, most: float
    ) -> float:
        if not message.HasField(field):
            return default
        return self.number(f"{path}.{field}", getattr(message, field), least, most)


def write_options(options: GuidanceOptions, message: pb.GenerationParameters) -> None:
    """Sets the guidance fields; those of options that were not chosen stay unset."""
    if options.method != ClassifierFree():
        chosen = getattr(message.guidance_method, method_name(options.method))
        for name, value in asdict(options.method).items():
            setattr(chosen, name, value)
    if options.rescale:
        message.guidance_rescale = options.rescale
    if options.skip_layers is not None:
        message.skip_layer_guidance.CopyFrom(pb.SkipLayerGuidance(**asdict(options.skip_layers)))
    if options.perturbed_attention is not None:
        message.perturbed_attention_guidance.CopyFrom(
            pb.PerturbedAttentionGuidance(**asdict(options.perturbed_attention))
        )
    message.compositions.extend(_composition_message(composition) for composition in options.compositions)


def options_record(options: GuidanceOptions, prompt: int) -> dict[str, Any]:
    """What was chosen for prompt number `prompt`, as JSON has the fields of GenerationParameters."""
    record: dict[str, Any] = {}
    if options.method != ClassifierFree():
        record["guidance_method"] = {method_name(options.method): asdict(options.method)}
    if options.rescale:
        record["guidance_rescale"] = options.rescale
    if options.skip_layers is not None:
        record["skip_layer_guidance"] = _listed(options.skip_layers)
    if options.perturbed_attention is not None:
        record["perturbed_attention_guidance"] = _listed(options.perturbed_attention)
    if options.compositions:
        chosen = options.compositions[prompt]
        prompts = [
            {"prompt": text, "weight": weight}
            for text, weight in zip(chosen.prompts, chosen.weights, strict=True)
        ]
        record["compositions"] = [{"prompt_weight": chosen.prompt_weight, "prompts": prompts}]
    return record


def _listed(guidance: LayerGuidance) -> dict[str, Any]:
    return {**asdict(guidance), "layers": list(guidance.layers)}


def _composition_message(composition: Composition) -> pb.Composition:
    return pb.Composition(
        prompt_weight=composition.prompt_weight,
        prompts=[
            pb.WeightedPrompt(prompt=text, weight=weight)
            for text, weight in zip(composition.prompts, composition.weights, strict=True)
        ],
    )
