"""The conditioning of prompts, and the references, that were encoded before."""

import sys
from dataclasses import dataclass
from typing import NamedTuple

from triptych.caches import Cache
from triptych.families.reference_sizes import ReferenceSize
from triptych.v1 import tensor_pb2, text_encoder_pb2
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


class ShownPicture(NamedTuple):
    """A picture as text encoders are shown it, uint8 [h, w, 3], and its digest."""

    message: tensor_pb2.Tensor
    digest: bytes


@dataclass(frozen=True)
class EncodedReference:
    """What a denoiser attends to: float32 latents [C, h, w] under their digest."""

    digest: bytes
    latents: tensor_pb2.Tensor
    shown: ShownPicture | None = None
    """The same picture for text encoders that see some."""
    warnings: tuple[str, ...] = ()
    """What of its file could not be read."""

    @property
    def nbytes(self) -> int:
        """Bytes of the latents and of the picture."""
        return self.latents.ByteSize() + (self.shown.message.ByteSize() if self.shown else 0)


ReferenceCache = Cache[tuple[bytes, str, bytes, ReferenceSize, ReferenceSize | None], EncodedReference]
"""Encoded references by whose they are, the VAE codec's fingerprint, the file's SHA-256 and the sizes that it
was brought to."""
