"""The three stages that serve one checkpoint."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from triptych.v1.denoiser_pb2 import DenoiserServiceGetModelRequest as AskDenoiser
from triptych.v1.text_encoder_pb2 import TextEncoderServiceGetModelRequest as AskTextEncoder
from triptych.v1.vae_codec_pb2 import VaeCodecServiceGetModelRequest as AskVaeCodec
from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.connections import Stubs
from triptych_coordinator.fleet.demand import Demand
from triptych_coordinator.fleet.fleet import Fleet
from triptych_coordinator.fleet.membership import Fits
from triptych_coordinator.fleet.retries import HealthCheck, RetryPolicy
from triptych_coordinator.stages.conditioning import ConditioningCache, ReferenceCache
from triptych_coordinator.stages.denoiser import DenoiserFleet
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.text_encoder import TextEncoderFleet, TextEncoders
from triptych_coordinator.stages.vae_codec import VaeCodecFleet, VaeCodecs

_TEXT_ENCODER_SIZES = "joint_attention_dim", "max_prompts", "max_prompt_bytes", "tokens"
_VAE_CODEC_SIZES = "latent_channels", "downscale", "max_pixels"
_DENOISER_SIZES = (
    *("latent_channels", "latent_multiple", "max_latent_size", "default_latent_size"),
    *("joint_attention_dim", "max_samples", "max_branches"),
)


class Stages:
    """The replicas of each."""

    def __init__(
        self,
        stubs: Stubs,
        health_check: HealthCheck,
        retries: RetryPolicy,
        cache: ConditioningCache,
        references: ReferenceCache,
        fits: Fits,
    ) -> None:
        """`health_check` is for questions what a replica serves, `retries` for the work.

        `fits` says whether a replica's model is the checkpoint's.
        """
        policies = health_check, retries, fits
        text_encoders: TextEncoderFleet = Fleet(
            "text encoder", stubs.text_encoder, AskTextEncoder(), _TEXT_ENCODER_SIZES, *policies
        )
        vae_codecs: VaeCodecFleet = Fleet(
            "VAE codec", stubs.vae_codec, AskVaeCodec(), _VAE_CODEC_SIZES, *policies
        )
        self.text_encoders = TextEncoders(text_encoders, cache)
        self.references = references
        self.denoisers: DenoiserFleet = Fleet(
            "denoiser", stubs.denoiser, AskDenoiser(), _DENOISER_SIZES, *policies
        )
        self.vae_codecs = VaeCodecs(vae_codecs)

    async def close(self) -> None:
        """Ends the connections; running calls are cancelled."""
        await asyncio.gather(*(fleet.close() for fleet in self.fleets))

    @property
    def fleets(self) -> Sequence[Fleet[Any, Any]]:
        """Text encoders, denoisers, VAE codecs."""
        return self.text_encoders.fleet, self.denoisers, self.vae_codecs.fleet

    @property
    def demands(self) -> dict[str, Demand]:
        """What each has to do, by the name that metrics have for it."""
        return {
            "text_encoder": self.text_encoders.fleet.demand,
            "denoiser": self.denoisers.demand,
            "vae_codec": self.vae_codecs.fleet.demand,
        }

    @contextmanager
    def request_comes(self) -> Iterator[None]:
        """Says for the duration of a request that it needs denoisers and VAE codecs, before it comes so far.

        They may start while others wait for a text encoder. Of that nothing is said: prompts may be known.
        """
        with self.denoisers.demand.expected(), self.vae_codecs.fleet.demand.expected():
            yield

    async def models(self, deadline: Deadline, fresh: bool = False) -> Models:
        """What the stages serve, as Fleet.description. A request keeps to these fingerprints.

        Raises:
            TriptychError: UNAVAILABLE that names a stage which is not up.
        """
        fleets = self.text_encoders.fleet, self.denoisers, self.vae_codecs.fleet
        with ExitStack() as expected:
            if not all(fleet.described for fleet in fleets):  # who answered first stays until all have
                for demand in self.demands.values():
                    expected.enter_context(demand.expected())
            text_encoder, denoiser, vae_codec = await asyncio.gather(
                self.text_encoders.fleet.description(deadline, fresh),
                self.denoisers.description(deadline, fresh),
                self.vae_codecs.fleet.description(deadline, fresh),
            )
        return Models(text_encoder, denoiser, vae_codec)
