"""The conditioning of prompts that were encoded before."""

import sys
from dataclasses import dataclass

from triptych.caches import Cache
from triptych.v1 import text_encoder_pb2
from triptych_coordinator.request.prompt_weights import WeightedText


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's conditioning, as the text encoder sent it."""

    conditioning: text_encoder_pb2.Conditioning
    truncated: str
    """The part of the prompt that no encoder read because it was too long."""
    fingerprint: str
    """Of who encoded it, with LoRAs."""
    warnings: tuple[str, ...] = ()
    """What of LoRAs was not applied."""

    @property
    def nbytes(self) -> int:
        """Bytes of the conditioning and the text."""
        return self.conditioning.ByteSize() + sys.getsizeof(self.truncated)


ConditioningCache = Cache[tuple[bytes, str, WeightedText, tuple[bytes, ...]], EncodedPrompt]
"""Encoded prompts by whose they are (see CoordinatorLimits.share_conditioning), the text encoder's
fingerprint, the prompt and the digests of the pictures that were shown beside it."""
