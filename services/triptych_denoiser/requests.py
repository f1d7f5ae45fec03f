"""What requests must be, and the tensors in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from triptych.digests import conditioning_digest, reference_digest
from triptych.errors import refuse
from triptych.loras import lora_violations
from triptych.tensors import message_to_torch
from triptych.v1 import denoiser_pb2
from triptych_denoiser.models.transformer import Inputs
from triptych_denoiser.settings import MAX_BRANCHES

DIGEST_BYTES = 32
MAX_GUIDANCE_SCALE = 100.0
MAX_COEFFICIENTS = 8
LATENTS_SHARE = 15 / 16
"""Of the largest message: the rest is for levels, digests and the like."""

Violation = tuple[str, str]
"""A field's path and what is wrong with it."""


@dataclass(frozen=True)
class ModelLimits:
    """What a model and its server take.

    max_latents_bytes: of the latents, or the velocities, in a message.
    """

    inputs: Inputs
    max_samples: int
    max_latents_bytes: int
    dtype: torch.dtype

    @property
    def max_guidance_scale(self) -> float:
        """The largest scale: models take a thousand times it, in their dtype."""
        return min(MAX_GUIDANCE_SCALE, torch.finfo(self.dtype).max / 1000)

    @classmethod
    def of(
        cls, inputs: Inputs, dtype: torch.dtype, max_queued_rows: int, max_message_bytes: int
    ) -> ModelLimits:
        """The limits of a model; max_samples is what fits in the queue and, at the size that the model was
        trained at, with every branch in one message."""
        sample_bytes = inputs.channels * inputs.default_size**2 * 4
        max_latents_bytes = int(LATENTS_SHARE * max_message_bytes)
        max_samples = min(max_queued_rows, max_latents_bytes // sample_bytes) // MAX_BRANCHES
        return cls(inputs, max(1, max_samples), max_latents_bytes, dtype)


def read_latents(request: denoiser_pb2.PredictRequest, limits: ModelLimits) -> Tensor:
    """The latents of a checked request, float32 [samples, channels, height, width].

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong.
    """
    latents = message_to_torch(
        request.latents,
        "latents",
        dtypes=["float32"],
        shape=["samples", limits.inputs.channels, "height", "width"],
    )
    refuse(
        chain(
            _latents_violations(latents, len(request.branches), limits),
            _sigma_violations(request.sigmas, len(latents)),
            _guidance_violations(request.guidance_scales, len(latents), limits),
            _target_violations(request.target_sigmas, len(latents), limits),
            _branch_violations(request.branches, len(latents), limits),
            lora_violations(request.loras),
        )
    )
    return latents


def read_reuse(
    branch: denoiser_pb2.Branch, field: str, latents: Tensor, limits: ModelLimits
) -> tuple[Tensor | None, Tensor | None]:
    """The latents of the evaluation whose features a checked branch may reuse, and of the one before this if
    changes of its input decide: [samples, ...] like `latents`, or None. `field` is the branch's path.

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong.
    """
    reuse, path = branch.feature_reuse, f"{field}.feature_reuse"
    earlier = before = None
    violations = [*_threshold_violations(reuse, path)]
    if reuse.HasField("latents"):
        earlier = _evaluated_latents(reuse, path, latents)
        violations += _evaluation_violations(reuse, path, earlier, limits)
    elif reuse.sigmas or reuse.guidance_scales or reuse.target_sigmas:
        violations.append((path, "has sigmas or guidance scales of an evaluation without its latents"))
    if reuse.HasField("input_change"):
        at = f"{path}.input_change"
        if earlier is None or reuse.all_layers:
            violations.append((at, "must not be set with all_layers, or without latents of what is reused"))
        before = _evaluated_latents(reuse.input_change, at, latents)
        violations += _evaluation_violations(reuse.input_change, at, before, limits)
        violations += _change_violations(reuse.input_change, at, len(latents))
    refuse(violations)
    return earlier, before


def _evaluated_latents(
    evaluation: denoiser_pb2.FeatureReuse | denoiser_pb2.InputChange, path: str, latents: Tensor
) -> Tensor:
    return message_to_torch(
        evaluation.latents, f"{path}.latents", dtypes=["float32"], shape=list(latents.shape)
    )


def _evaluation_violations(
    evaluation: denoiser_pb2.FeatureReuse | denoiser_pb2.InputChange,
    path: str,
    latents: Tensor,
    limits: ModelLimits,
) -> Iterator[Violation]:
    """Of an evaluation that has these latents."""
    samples = len(latents)
    yield from _finite_violations(f"{path}.latents", latents, limits)
    yield from _sigma_violations(evaluation.sigmas, samples, f"{path}.sigmas")
    yield from _guidance_violations(evaluation.guidance_scales, samples, limits, f"{path}.guidance_scales")
    yield from _target_violations(evaluation.target_sigmas, samples, limits, f"{path}.target_sigmas")


def _threshold_violations(reuse: denoiser_pb2.FeatureReuse, path: str) -> Iterator[Violation]:
    if reuse.all_layers and reuse.threshold:
        yield f"{path}.threshold", f"is {reuse.threshold:g}; with all_layers there is none: 0"
    elif not reuse.all_layers and not 0 < reuse.threshold <= 1:
        yield f"{path}.threshold", f"is {reuse.threshold:g}; allowed is above 0 to 1"


def _change_violations(change: denoiser_pb2.InputChange, path: str, samples: int) -> Iterator[Violation]:
    if len(change.sums) != samples:
        yield f"{path}.sums", f"{len(change.sums)} of them for {samples} samples"
    if not 1 <= len(change.coefficients) <= MAX_COEFFICIENTS:
        given = len(change.coefficients)
        yield f"{path}.coefficients", f"{given} of them; allowed are 1 to {MAX_COEFFICIENTS}"
    for name in ("sums", "coefficients"):
        if not all(map(math.isfinite, getattr(change, name))):
            yield f"{path}.{name}", "has values that are not finite"


def read_conditioning(
    request: denoiser_pb2.PutConditioningRequest, limits: ModelLimits
) -> tuple[Tensor, Tensor]:
    """The sequence [tokens, joint_attention_dim] and pooled [pooled_projection_dim] of a checked request.

    `pooled` has shape [0] for a model that takes none.

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong.
    """
    inputs, floats = limits.inputs, ("float32", "float16", "bfloat16")
    sequence = message_to_torch(
        request.sequence, "sequence", dtypes=floats, shape=["tokens", inputs.joint_attention_dim]
    )
    pooled = message_to_torch(request.pooled, "pooled", dtypes=floats, shape=[inputs.pooled_projection_dim])
    violations = [
        *_finite_violations("sequence", sequence, limits),
        *_finite_violations("pooled", pooled, limits),
    ]
    if not 1 <= len(sequence) <= inputs.max_tokens:
        violations.append(("sequence", f"{len(sequence)} tokens; allowed are 1 to {inputs.max_tokens}"))
    positions = list(request.reference_positions)
    violations += _positions_violations(positions, len(sequence), inputs)
    if request.digest != conditioning_digest(request.sequence, request.pooled, positions):
        violations.append(("digest", "is not that of sequence and pooled"))
    refuse(violations)
    return sequence, pooled


def read_reference(request: denoiser_pb2.PutConditioningRequest, limits: ModelLimits) -> Tensor:
    """The reference of a request that has one, float32 [reference_channels, height, width].

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong.
    """
    if not limits.inputs.max_references:
        refuse([("reference", "this model takes no references")])
    shape: list[int | str] = [limits.inputs.reference_channels, "height", "width"]
    reference = message_to_torch(request.reference, "reference", dtypes=["float32"], shape=shape)
    violations = [
        *_size_violations("reference", reference, limits),
        *_finite_violations("reference", reference, limits),
    ]
    if request.HasField("sequence") or request.HasField("pooled") or request.reference_positions:
        violations.append(
            ("reference", "must come without sequence and pooled, and without reference_positions")
        )
    if request.digest != reference_digest(request.reference):
        violations.append(("digest", "is not that of the reference"))
    refuse(violations)
    return reference


def _positions_violations(positions: Sequence[int], tokens: int, inputs: Inputs) -> Iterator[Violation]:
    """Of the references of a text of so many tokens."""
    if positions and not inputs.references_in_text:
        yield "reference_positions", "this model reads no references inside the text"
    elif len(positions) > inputs.max_references:
        yield "reference_positions", f"{len(positions)} of them; allowed are 0 to {inputs.max_references}"
    elif list(positions) != sorted(positions) or not all(0 <= at <= tokens for at in positions):
        yield "reference_positions", f"must not fall, and be from 0 to {tokens}, the tokens of the sequence"


def _latents_violations(latents: Tensor, branches: int, limits: ModelLimits) -> Iterator[Violation]:
    samples = len(latents)
    fits = True
    if not 1 <= samples <= limits.max_samples:
        fits = False
        yield "latents", f"{samples} samples; allowed are 1 to {limits.max_samples}"
    for violation in _size_violations("latents", latents, limits):
        fits = False
        yield violation
    if branches * latents.nbytes > limits.max_latents_bytes:
        fits = False
        yield (
            "latents",
            f"the velocities of {branches} branches are {branches * latents.nbytes} bytes, "
            f"of which a message holds at most {limits.max_latents_bytes}: send fewer samples in a call",
        )
    if fits:
        yield from _finite_violations("latents", latents, limits)


def _size_violations(name: str, tensor: Tensor, limits: ModelLimits) -> Iterator[Violation]:
    """Of the height and width of [..., height, width]."""
    multiple, largest = limits.inputs.size_multiple, limits.inputs.max_size
    for side, size in zip(("height", "width"), tensor.shape[-2:], strict=True):
        if size % multiple or not 0 < size <= largest:
            yield name, f"{side} is {size}; allowed are multiples of {multiple} up to {largest}"


def _finite_violations(name: str, tensor: Tensor, limits: ModelLimits) -> Iterator[Violation]:
    """Values that the model's dtype cannot hold are infinite there."""
    if not tensor.to(limits.dtype).isfinite().all():
        yield name, f"has values that are not finite in {str(limits.dtype).removeprefix('torch.')}"


def _sigma_violations(sigmas: Sequence[float], samples: int, field: str = "sigmas") -> Iterator[Violation]:
    if len(sigmas) != samples:
        yield field, f"{len(sigmas)} of them for {samples} samples"
        return
    for index, sigma in enumerate(sigmas):
        if not 0 <= sigma <= 1:  # NaN is not either
            yield f"{field}[{index}]", f"is {sigma:g}; allowed are 0 to 1"


def _target_violations(
    sigmas: Sequence[float], samples: int, limits: ModelLimits, field: str = "target_sigmas"
) -> Iterator[Violation]:
    if limits.inputs.target_sigma:
        yield from _sigma_violations(sigmas, samples, field)
    elif sigmas:
        yield field, f"{len(sigmas)} of them; this model does not take any"


def _guidance_violations(
    scales: Sequence[float], samples: int, limits: ModelLimits, field: str = "guidance_scales"
) -> Iterator[Violation]:
    if not limits.inputs.guidance:
        if scales:
            yield field, f"{len(scales)} of them; this model does not take any"
        return
    if len(scales) != samples:
        yield field, f"{len(scales)} of them for {samples} samples; this model takes one for each"
        return
    for index, scale in enumerate(scales):
        if not 0 <= scale <= limits.max_guidance_scale:  # NaN is not either
            yield f"{field}[{index}]", f"is {scale:g}; allowed are 0 to {limits.max_guidance_scale:g}"


def _branch_violations(
    branches: Sequence[denoiser_pb2.Branch], samples: int, limits: ModelLimits
) -> Iterator[Violation]:
    if not 1 <= len(branches) <= MAX_BRANCHES:
        yield "branches", f"{len(branches)} of them; allowed are 1 to {MAX_BRANCHES}"
        return
    for index, branch in enumerate(branches):
        digests, field = branch.conditioning_digests, f"branches[{index}].conditioning_digests"
        if len(digests) != samples:
            yield field, f"{len(digests)} of them for {samples} samples"
        elif any(len(digest) != DIGEST_BYTES for digest in digests):
            yield field, f"a digest has {DIGEST_BYTES} bytes"
        yield from _references_violations(branch.references, samples, index, limits)
        for name in ("skipped_layers", "perturbed_layers"):
            for layer in getattr(branch, name):
                if not 0 <= layer < limits.inputs.num_layers:
                    yield (
                        f"branches[{index}].{name}",
                        f"{layer} is none of the {limits.inputs.num_layers} layers",
                    )


def _references_violations(
    references: Sequence[denoiser_pb2.ReferenceList], samples: int, branch: int, limits: ModelLimits
) -> Iterator[Violation]:
    """Of the references of a branch."""
    field, inputs = f"branches[{branch}].references", limits.inputs
    if inputs.reference_same_size and len(references) != samples:
        yield field, f"{len(references)} of them for {samples} samples; this model needs one for each"
    elif len(references) not in (0, samples):
        yield field, f"{len(references)} of them for {samples} samples"
    least = 1 if inputs.reference_same_size else 0
    for index, one in enumerate(references[:samples]):
        if not least <= len(one.digests) <= inputs.max_references:
            allowed = f"allowed are {least} to {inputs.max_references}"
            yield f"{field}[{index}].digests", f"{len(one.digests)} references; {allowed}"
        elif any(len(digest) != DIGEST_BYTES for digest in one.digests):
            yield f"{field}[{index}].digests", f"a digest has {DIGEST_BYTES} bytes"
