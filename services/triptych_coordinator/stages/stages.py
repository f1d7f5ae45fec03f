"""The three stages that serve one checkpoint."""

import asyncio

from triptych_coordinator.deadlines import Deadline
from triptych_coordinator.fleet.connections import Stubs
from triptych_coordinator.fleet.membership import Fits
from triptych_coordinator.fleet.retries import HealthCheck, RetryPolicy
from triptych_coordinator.stages.conditioning import ConditioningCache
from triptych_coordinator.stages.denoiser import Denoisers
from triptych_coordinator.stages.fit import Models
from triptych_coordinator.stages.text_encoder import TextEncoders
from triptych_coordinator.stages.vae_codec import VaeCodecs


class Stages:
    """The replicas of each."""

    def __init__(
        self,
        stubs: Stubs,
        health_check: HealthCheck,
        retries: RetryPolicy,
        cache: ConditioningCache,
        fits: Fits,
    ) -> None:
        """`health_check` is for questions what a replica serves, `retries` for the work.

        `fits` says whether a replica's model is the checkpoint's.
        """
        self.text_encoders = TextEncoders(stubs.text_encoder, health_check, retries, cache, fits)
        self.denoisers = Denoisers(stubs.denoiser, health_check, retries, fits)
        self.vae_codecs = VaeCodecs(stubs.vae_codec, health_check, retries, fits)

    async def close(self) -> None:
        """Ends the connections; running calls are cancelled."""
        await asyncio.gather(self.text_encoders.close(), self.denoisers.close(), self.vae_codecs.close())

    async def models(self, deadline: Deadline, fresh: bool = False) -> Models:
        """What the stages serve, as Fleet.description. A request keeps to these fingerprints.

        Raises:
            TriptychError: UNAVAILABLE that names a stage which is not up.
        """
        text_encoder, denoiser, vae_codec = await asyncio.gather(
            self.text_encoders.description(deadline, fresh),
            self.denoisers.description(deadline, fresh),
            self.vae_codecs.description(deadline, fresh),
        )
        return Models(text_encoder, denoiser, vae_codec)
