"""A running denoiser and what is said to it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.serving import channel_to_stage
from triptych.digests import conditioning_digest
from triptych.tensors import torch_to_message
from triptych.v1 import denoiser_pb2, denoiser_pb2_grpc
from triptych_denoiser.__main__ import STAGE, create
from triptych_denoiser.servicer import DenoiserServicer
from triptych_denoiser.settings import DenoiserSettings

WIDTH = 32  # of sequence and pooled vectors in the tiny checkpoint
CHANNELS = 4
ZEROS = 256


@dataclass(frozen=True)
class Denoiser:
    """A stub of a server and the servicer behind it."""

    stub: Any
    servicer: DenoiserServicer


@asynccontextmanager
async def serving(settings: DenoiserSettings) -> AsyncIterator[Denoiser]:
    """A denoiser that listens where the settings say."""
    servicer = create(settings)
    async with channel_to_stage(replace(STAGE, create=lambda _: servicer), settings) as channel:
        yield Denoiser(denoiser_pb2_grpc.DenoiserServiceStub(channel), servicer)


@dataclass(frozen=True)
class Prompt:
    """Conditioning as a text encoder without T5 makes it: a few tokens, then zeros."""

    sequence: Tensor
    pooled: Tensor

    @classmethod
    def random(cls, seed: int, tokens: int = 4) -> "Prompt":
        """The same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        sequence = torch.zeros(tokens + ZEROS, WIDTH)
        sequence[:tokens] = torch.randn(tokens, WIDTH, generator=generator)
        return cls(sequence, torch.randn(WIDTH, generator=generator))

    def upload(self) -> denoiser_pb2.PutConditioningRequest:
        """The request that puts it."""
        sequence, pooled = torch_to_message(self.sequence), torch_to_message(self.pooled)
        return denoiser_pb2.PutConditioningRequest(
            digest=conditioning_digest(sequence, pooled), sequence=sequence, pooled=pooled
        )

    @property
    def digest(self) -> bytes:
        """Its digest."""
        return self.upload().digest


def random_latents(seed: int, samples: int = 1, height: int = 8, width: int = 8) -> Tensor:
    """The same for the same arguments."""
    return torch.randn(samples, CHANNELS, height, width, generator=torch.Generator().manual_seed(seed))


def request(
    latents: Tensor, sigmas: Sequence[float], branches: Sequence[Sequence[Prompt]]
) -> denoiser_pb2.PredictRequest:
    """A Predict of latents, with a prompt per sample in every branch."""
    return denoiser_pb2.PredictRequest(
        latents=torch_to_message(latents),
        sigmas=sigmas,
        branches=[
            denoiser_pb2.Branch(conditioning_digests=[prompt.digest for prompt in branch])
            for branch in branches
        ],
    )
