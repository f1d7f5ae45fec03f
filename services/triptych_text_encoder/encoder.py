"""Encodes prompts on the compute thread, each alone, and remembers the latest ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from triptych.caches import Cache
from triptych.compute.thread import compute
from triptych_text_encoder.loras import added, model_of
from triptych_text_encoder.weighting import Span, weighted

if TYPE_CHECKING:
    from triptych.compute.lora_changes import Loras
    from triptych_text_encoder.encoding import Encoding
    from triptych_text_encoder.recipes import Recipe

Key: TypeAlias = tuple[bytes, str, tuple[Span, ...], tuple[tuple[str, float], ...]]
"""Whose it is, a prompt, the weights of its parts, and the LoRAs' identities with their weights."""

#: Encodings kept in memory: some 50 of SD3's 5.4 MB in float32, some 900 of the default model's.
CACHE_BYTES = 256 * 2**20


class TextEncoder:
    """A recipe behind the compute thread and a cache.

    Every prompt is a batch of its own, so that its bits do not depend on the prompts it came with. The cache
    makes up for it: a picture's prompts are encoded once, the usual negative one ("") nearly never.
    """

    def __init__(self, recipe: Recipe, cache_bytes: int = CACHE_BYTES, loras: Loras = ()) -> None:
        """`loras` are added for every prompt."""
        self.recipe = recipe
        self.model = model_of(recipe)
        self._loras = loras
        self._cache: Cache[Key, Encoding] = Cache(cache_bytes, keeps_newest=False, name="encodings")

    async def encode(
        self, prompt: str, spans: tuple[Span, ...] = (), loras: Loras = (), scope: bytes = b""
    ) -> Encoding:
        """The encoding of one prompt, whose spans have weights if the recipe has token_weights.

        loras: those that change the encoders.
        scope: what is remembered under one is not found under another, but for the empty prompt's.

        When the caller is cancelled, work that has not begun is dropped.
        """
        known = self._cache.get(_key(prompt, spans, loras, scope))
        if known is not None:
            return known
        return await compute(self._encode, prompt, spans, loras, scope)

    def _encode(self, prompt: str, spans: tuple[Span, ...], loras: Loras, scope: bytes) -> Encoding:
        # The one thread takes prompts in turn, so a duplicate finds here what the first of them left.
        key = _key(prompt, spans, loras, scope)
        known = self._cache.get(key)
        if known is not None:
            return known
        token_weights = self.recipe.token_weights
        if spans and token_weights is not None:
            whole, empty = self._encode(prompt, (), loras, scope), self._encode("", (), loras, scope)
            encoding = weighted(whole, empty, token_weights(prompt, spans))
        else:
            with added(self.model, (*self._loras, *loras)):
                encoding = self.recipe.encode(prompt)
        self._cache.put(key, encoding)
        return encoding


def _key(prompt: str, spans: tuple[Span, ...], loras: Loras, scope: bytes) -> Key:
    return scope if prompt else b"", prompt, spans, tuple((lora.identity, weight) for lora, weight in loras)
