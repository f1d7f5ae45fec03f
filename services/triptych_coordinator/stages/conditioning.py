"""The conditioning of prompts that were encoded before."""

from collections import OrderedDict
from dataclasses import dataclass

from triptych.v1 import text_encoder_pb2
from triptych_coordinator.request.prompt_weights import WeightedText


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's conditioning, as the text encoder sent it."""

    conditioning: text_encoder_pb2.Conditioning
    truncated: str
    """The part of the prompt that no encoder read because it was too long."""


class ConditioningCache:
    """Encoded prompts by text encoder fingerprint, text and weights, the least recently used forgotten."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, WeightedText], EncodedPrompt] = OrderedDict()

    def get(self, fingerprint: str, prompt: WeightedText) -> EncodedPrompt | None:
        """The encoded prompt, or None if it is not known."""
        key = fingerprint, prompt
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, fingerprint: str, prompt: WeightedText, encoded: EncodedPrompt) -> None:
        """Remembers an encoded prompt; an entry that alone is over the limit is not kept."""
        replaced = self._entries.pop((fingerprint, prompt), None)
        self._bytes += encoded.conditioning.ByteSize() - (replaced.conditioning.ByteSize() if replaced else 0)
        self._entries[fingerprint, prompt] = encoded
        while self._bytes > self._max_bytes:
            _, forgotten = self._entries.popitem(last=False)
            self._bytes -= forgotten.conditioning.ByteSize()
