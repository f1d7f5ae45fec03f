"""The part of a vision-language model that sees pictures, and how its text part is given what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from triptych_text_encoder.encoding import Picture
    from triptych_text_encoder.towers import Tower

IMAGE_MARK = "<|image_pad|>"
"""The token in whose place a text part is given one vector of a picture."""


@dataclass(frozen=True)
class Seen:
    """What a vision tower makes of pictures, one after the other, in the language model's space.

    vectors: [slots, width].
    deepstack: what is added behind the first, second... layer of the text part, likewise; none for a model
        without.
    grids: rows and columns of each picture's slots.
    """

    vectors: torch.Tensor
    deepstack: Sequence[torch.Tensor]
    grids: Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class VisionTower:
    """A vision encoder with the image processor that feeds it."""

    processor: Any
    model: Any

    @property
    def parameters(self) -> int:
        """Number of parameters of the encoder."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def slot_size(self) -> int:
        """Pixels of a slot's height and width."""
        return int(self.processor.patch_size * self.processor.merge_size)

    def see(self, pictures: Sequence[Picture], resize: bool) -> Seen:
        """What it makes of pictures, which the processor brings to sizes of its own or takes as they are."""
        prepared = self.processor(
            [picture.pixels for picture in pictures],
            do_resize=resize,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        weight = next(self.model.parameters())
        patches = prepared.pixel_values.to(weight.device, weight.dtype)
        grids = prepared.image_grid_thw.to(weight.device)
        output = self.model(patches, grid_thw=grids, return_dict=True)
        merge = self.processor.merge_size
        sizes = [(rows // merge, columns // merge) for _, rows, columns in prepared.image_grid_thw.tolist()]
        return Seen(output.pooler_output, getattr(output, "deepstack_features", None) or (), sizes)


@dataclass(frozen=True)
class States:
    """The last hidden states of a text with pictures in it, [tokens, width].

    slots: which of them stand for each picture.
    """

    states: torch.Tensor
    slots: Sequence[slice]

    def without_slots(self) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Those of the text alone, and how many of them come before each picture."""
        import torch

        edges = [0, *(edge for slot in self.slots for edge in (slot.start, slot.stop)), len(self.states)]
        texts = [self.states[start:stop] for start, stop in list(pairwise(edges))[::2]]
        before = torch.tensor([len(text) for text in texts[:-1]]).cumsum(0)
        return torch.cat(texts), tuple(before.tolist())


def read_with_pictures(
    tower: Tower, token_ids: torch.Tensor, pictures: Sequence[Picture], resize: bool = False
) -> States:
    """What a tower with eyes makes of a text whose first image marks stand for pictures, one each.

    `token_ids` are int64 [1, tokens]. Later marks are text. `resize` is as in VisionTower.see.
    """
    import torch

    if tower.vision is None:
        raise ValueError("this text encoder sees no pictures")
    seen = tower.vision.see(pictures, resize)
    mark = tower.tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    at = (token_ids[0] == mark).nonzero()[: len(seen.grids), 0].tolist()
    sizes = [rows * columns for rows, columns in seen.grids]
    texts = [
        token_ids[0, start:stop] for start, stop in pairwise([0, *(i + 1 for i in at), token_ids.shape[1]])
    ]
    runs = [len(text) - 1 for text in texts[:-1]] + [len(texts[-1])]
    repeats = torch.ones_like(token_ids[0])
    repeats[at] = torch.tensor(sizes, device=repeats.device)
    embedded = tower.model.embed_tokens(token_ids[0].repeat_interleave(repeats))
    slots, start = [], 0
    for run, size in zip(runs, sizes, strict=False):
        slots.append(slice(start + run, start + run + size))
        start += run + size
    is_slot = torch.zeros(1, len(embedded), dtype=torch.bool, device=embedded.device)
    for slot in slots:
        is_slot[:, slot] = True
    embedded[is_slot[0]] = seen.vectors.to(embedded.dtype)
    added = {"visual_pos_masks": is_slot, "deepstack_visual_embeds": seen.deepstack} if seen.deepstack else {}
    output = tower.model(
        inputs_embeds=embedded[None],
        position_ids=positions(runs, seen.grids).to(embedded.device)[:, None],
        use_cache=False,
        **added,
    )
    return States(output.last_hidden_state[0], slots)


def positions(runs: Sequence[int], grids: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Positions of tokens in time, height and width: int64 [3, tokens].

    A text goes on by one on all axes. A picture's slots have the time at which it begins, and their rows and
    columns counted from there; what is behind goes on as many as its longer side has.

    Args:
        runs: how many tokens the text has before the first picture, between them and behind the last.
        grids: rows and columns of each picture.
    """
    import torch

    parts, at = [], 0
    for run, grid in zip_longest(runs, grids):
        parts.append(torch.arange(at, at + run).expand(3, -1))
        at += run
        if grid is not None:
            rows, columns = (torch.arange(at, at + size) for size in grid)
            parts.append(torch.cartesian_prod(torch.tensor([at]), rows, columns).T)
            at += max(grid)
    return torch.cat(parts, dim=1)
