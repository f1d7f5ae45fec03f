"""Encodes prompts on the compute thread, each alone, and remembers the latest ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from triptych.caches import Cache
from triptych.compute.thread import compute
from triptych_text_encoder.loras import added, model_of
from triptych_text_encoder.weighting import Span, weighted

if TYPE_CHECKING:
    from triptych.compute.lora_changes import Loras
    from triptych_text_encoder.encoding import Encoding, Picture
    from triptych_text_encoder.recipes import Recipe

Key: TypeAlias = tuple[bytes, str, tuple[bytes, ...], tuple[Span, ...], tuple[tuple[str, float], ...]]
"""Whose it is, a prompt, pictures' digests, the weights of its parts, the LoRAs' identities and weights."""

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
        self,
        prompt: str,
        spans: tuple[Span, ...] = (),
        loras: Loras = (),
        scope: bytes = b"",
        pictures: tuple[Picture, ...] = (),
    ) -> Encoding:
        """The encoding of one prompt, whose spans have weights if the recipe has token_weights.

        loras: those that change the encoders.
        scope: what is remembered under one is not found under another, but for the empty prompt's.
        pictures: what is shown beside it, if the recipe has eyes.

        When the caller is cancelled, work that has not begun is dropped.
        """
        known = self._cache.get(_key(prompt, spans, loras, scope, pictures))
        if known is not None:
            return known
        return await compute(self._encode, prompt, spans, loras, scope, pictures)

    def _encode(
        self,
        prompt: str,
        spans: tuple[Span, ...],
        loras: Loras,
        scope: bytes,
        pictures: tuple[Picture, ...],
    ) -> Encoding:
        # The one thread takes prompts in turn, so a duplicate finds here what the first of them left.
        key = _key(prompt, spans, loras, scope, pictures)
        known = self._cache.get(key)
        if known is not None:
            return known
        token_weights = self.recipe.token_weights
        if spans and token_weights is not None:
            whole, empty = (self._encode(text, (), loras, scope, pictures) for text in (prompt, ""))
            encoding = weighted(whole, empty, token_weights(prompt, spans))
        else:
            with added(self.model, (*self._loras, *loras)):
                encoding = self.recipe.encode(prompt, pictures)
        self._cache.put(key, encoding)
        return encoding


def _key(
    prompt: str, spans: tuple[Span, ...], loras: Loras, scope: bytes, pictures: tuple[Picture, ...]
) -> Key:
    owner = scope if prompt or pictures else b""
    shown = tuple(picture.digest for picture in pictures)
    return owner, prompt, shown, spans, tuple((lora.identity, weight) for lora, weight in loras)
