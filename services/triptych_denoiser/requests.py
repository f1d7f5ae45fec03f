"""What requests must be, and the tensors in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.digests import conditioning_digest
from triptych.errors import invalid_argument
from triptych.tensors import message_to_torch
from triptych.v1 import denoiser_pb2
from triptych_denoiser.models.sd3 import SD3Config

DIGEST_BYTES = 32
MAX_TOKENS = 2048

Violation = tuple[str, str]
"""A field's path and what is wrong with it."""


@dataclass(frozen=True)
class Limits:
    """What a model and its server take: sizes in latent pixels."""

    channels: int
    size_multiple: int
    max_size: int
    joint_attention_dim: int
    pooled_projection_dim: int
    num_layers: int
    max_samples: int
    max_branches: int
    max_message_bytes: int
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        config: SD3Config,
        dtype: torch.dtype,
        max_branches: int,
        max_queued_rows: int,
        max_message_bytes: int,
    ) -> Limits:
        """The limits of a model; max_samples is what fits in the queue and, at the size that the model was
        trained at, with every branch in one message."""
        sample_bytes = config.out_channels * config.sample_size**2 * 4
        max_samples = min(max_queued_rows, max_message_bytes // sample_bytes) // max_branches
        return cls(
            channels=config.in_channels,
            size_multiple=config.patch_size,
            max_size=config.pos_embed_max_size * config.patch_size,
            joint_attention_dim=config.joint_attention_dim,
            pooled_projection_dim=config.pooled_projection_dim,
            num_layers=config.num_layers,
            max_samples=max(1, max_samples),
            max_branches=max_branches,
            max_message_bytes=max_message_bytes,
            dtype=dtype,
        )


def read_latents(request: denoiser_pb2.PredictRequest, limits: Limits) -> Tensor:
    """The latents of a checked request, float32 [samples, channels, height, width].

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong.
    """
    latents = message_to_torch(
        request.latents, "latents", dtypes=["float32"], shape=["samples", limits.channels, "height", "width"]
    )
    violations = [
        *_latents_violations(latents, len(request.branches), limits),
        *_sigma_violations(request.sigmas, len(latents)),
        *_branch_violations(request.branches, len(latents), limits),
    ]
    if violations:
        raise invalid_argument(*violations)
    return latents


def read_conditioning(request: denoiser_pb2.PutConditioningRequest, limits: Limits) -> tuple[Tensor, Tensor]:
    """The sequence [tokens, joint_attention_dim] and pooled [pooled_projection_dim] of a checked request.

    Raises:
        TriptychError: INVALID_ARGUMENT that names every field that is wrong.
    """
    floats = ("float32", "float16", "bfloat16")
    sequence = message_to_torch(
        request.sequence, "sequence", dtypes=floats, shape=["tokens", limits.joint_attention_dim]
    )
    pooled = message_to_torch(request.pooled, "pooled", dtypes=floats, shape=[limits.pooled_projection_dim])
    violations = [
        *_finite_violations("sequence", sequence, limits),
        *_finite_violations("pooled", pooled, limits),
    ]
    if not 1 <= len(sequence) <= MAX_TOKENS:
        violations.append(("sequence", f"{len(sequence)} tokens; allowed are 1 to {MAX_TOKENS}"))
    if request.digest != conditioning_digest(request.sequence, request.pooled):
        violations.append(("digest", "is not that of sequence and pooled"))
    if violations:
        raise invalid_argument(*violations)
    return sequence, pooled


def _latents_violations(latents: Tensor, branches: int, limits: Limits) -> Iterator[Violation]:
    samples, _, height, width = latents.shape
    if not 1 <= samples <= limits.max_samples:
        yield "latents", f"{samples} samples; allowed are 1 to {limits.max_samples}"
    for name, size in (("height", height), ("width", width)):
        if size % limits.size_multiple or not 0 < size <= limits.max_size:
            yield (
                "latents",
                f"{name} is {size}; allowed are multiples of {limits.size_multiple} up to {limits.max_size}",
            )
    if branches * latents.nbytes > limits.max_message_bytes:
        yield (
            "latents",
            f"the velocities of {branches} branches are {branches * latents.nbytes} bytes, "
            f"messages at most {limits.max_message_bytes}: send fewer samples in a call",
        )
    yield from _finite_violations("latents", latents, limits)


def _finite_violations(name: str, tensor: Tensor, limits: Limits) -> Iterator[Violation]:
    """Values that the model's dtype cannot hold are infinite there."""
    if not tensor.to(limits.dtype).isfinite().all():
        yield name, f"has values that are not finite in {str(limits.dtype).removeprefix('torch.')}"


def _sigma_violations(sigmas: Sequence[float], samples: int) -> Iterator[Violation]:
    if len(sigmas) != samples:
        yield "sigmas", f"{len(sigmas)} of them for {samples} samples"
    for index, sigma in enumerate(sigmas):
        if not 0 <= sigma <= 1:  # NaN is not either
            yield f"sigmas[{index}]", f"is {sigma:g}; allowed are 0 to 1"


def _branch_violations(
    branches: Sequence[denoiser_pb2.Branch], samples: int, limits: Limits
) -> Iterator[Violation]:
    if not 1 <= len(branches) <= limits.max_branches:
        yield "branches", f"{len(branches)} of them; allowed are 1 to {limits.max_branches}"
    for index, branch in enumerate(branches):
        digests, field = branch.conditioning_digests, f"branches[{index}].conditioning_digests"
        if len(digests) != samples:
            yield field, f"{len(digests)} of them for {samples} samples"
        if any(len(digest) != DIGEST_BYTES for digest in digests):
            yield field, f"a digest has {DIGEST_BYTES} bytes"
        for name in ("skipped_layers", "perturbed_layers"):
            for layer in getattr(branch, name):
                if not 0 <= layer < limits.num_layers:
                    yield f"branches[{index}].{name}", f"{layer} is none of the {limits.num_layers} layers"
