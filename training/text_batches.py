"""Pairs of paraphrases of random scenes, as token ids with their meanings."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from training.captions import Caption, caption
from training.meaning import SLOTS, answers
from training.scenes import Item, Scene, Split, choose, is_heldout, sample_scene
from training.vocabulary import COLOURS, RECOLOURABLE

ANY_CANVAS = (384, 384)  # the words do not depend on it
EMPTY_SHARE = 0.02
ANY_COLOUR = 0.1  # share of things in any colour: that words for colours go with every noun must be learned
POOL = 8  # batches drawn together and sorted by length: short prompts need few tokens
TRIES = 6


@dataclass
class TextBatch:
    """Token ids per tokenizer [texts, tokens] each, where the prompts end [texts], and their meanings.

    The second half of the texts are paraphrases of the first.
    """

    ids: Tensor
    ids_2: Tensor
    ends: Tensor
    whole: Tensor
    each: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        """The same on a device."""
        return TextBatch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@dataclass(frozen=True)
class Pair:
    """Two texts for the same meaning."""

    texts: tuple[str, str]
    scene: Scene | None
    said: Caption | None


def painted_over(item: Item, rng: np.random.Generator) -> Item:
    """Now and then in some colour, whether or not there are pictures of that."""
    colour = choose(COLOURS, rng)
    if rng.random() >= ANY_COLOUR or is_heldout(item.name, f"in {colour}"):
        return item
    return replace(item, colour=None if RECOLOURABLE.get(item.name) == colour else colour)


def paraphrases(rng: np.random.Generator, split: Split) -> Pair:
    """A scene's caption and another one that says just as much."""
    if rng.random() < EMPTY_SHARE:
        return Pair(("", ""), None, None)
    scene = sample_scene(rng, ANY_CANVAS, split)
    if split == "train":
        scene = replace(scene, items=tuple(painted_over(item, rng) for item in scene.items))
    first = caption(scene, rng, every=True)
    for _ in range(TRIES):
        second = caption(scene, rng, every=True)
        if (second.arrangement, second.says_items, second.says_ground) == (
            first.arrangement,
            first.says_items,
            first.says_ground,
        ):
            return Pair((first.text, second.text), scene, first)
    return Pair((first.text, first.text), scene, first)


class TextBatches(IterableDataset[TextBatch]):
    """Endless batches of `pairs` pairs; each worker process has its own."""

    def __init__(self, model: Path, pairs: int, split: Split, seed: int) -> None:
        self.model, self.pairs, self.split, self.seed = model, pairs, split, seed

    def __iter__(self) -> Iterator[TextBatch]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, 0 if worker is None else worker.id))
        tokenizers = [CLIPTokenizer.from_pretrained(self.model / n) for n in ("tokenizer", "tokenizer_2")]
        while True:
            pool = [paraphrases(rng, self.split) for _ in range(self.pairs * POOL)]
            pool.sort(key=lambda pair: max(len(text.split()) for text in pair.texts))
            for index in rng.permutation(POOL):
                yield batch_of(pool[index * self.pairs : (index + 1) * self.pairs], tokenizers)


def batch_of(pairs: list[Pair], tokenizers: list[CLIPTokenizer]) -> TextBatch:
    """Token ids, cut behind the longest prompt's slots: causal features before do not depend on the rest."""
    texts = [pair.texts[k] for k in (0, 1) for pair in pairs]
    ids = [t(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids for t in tokenizers]
    ends = (ids[0] == tokenizers[0].eos_token_id).int().argmax(1)
    tokens = min(int(ends.max()) + 1 + SLOTS, ids[0].shape[1])
    meanings = [answers(pair.scene, pair.said) for pair in pairs]
    whole, each = (torch.from_numpy(np.stack(part)) for part in zip(*meanings, strict=True))
    return TextBatch(ids[0][:, :tokens], ids[1][:, :tokens], ends, whole.repeat(2, 1), each.repeat(2, 1, 1))
