"""How the tokens of a pass's rows lie in tensors: equal rows side by side, others one after the other.

What is done with each token alone (linears, norms, MLPs) does not ask whose token it is, so rows of any size
and text length share it. Only three things know rows: what modulates a row's tokens, attention, and the
positions. They go by groups of equal rows, and each group is computed as it would be alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

Groups = Sequence[Tensor]
"""A tensor for each group of equal rows: [rows, tokens, channels], or [rows, heads, tokens, head_dim]."""


@dataclass(frozen=True)
class EqualRows:
    """One group: packed is [rows, tokens, channels].

    tokens: how many a row has.
    """

    tokens: tuple[int]

    def pack(self, groups: Groups) -> Tensor:
        """The only group, [rows, tokens, channels]."""
        (group,) = groups
        return group

    def groups(self, packed: Tensor) -> Groups:
        """What was packed, with or without a dimension for heads, as the only group."""
        return [packed]

    def apply(self, operation: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """An elementwise operation on packed tokens, and on [rows, 1, channels] for each row's tokens."""
        return operation(*operands)


@dataclass(frozen=True)
class MixedRows:
    """Several groups, of `rows` rows each: packed is [1, all tokens, channels]. Without gradients.

    tokens: how many a row has, by group.
    """

    rows: tuple[int, ...]
    tokens: tuple[int, ...]

    def pack(self, groups: Groups) -> Tensor:
        """All tokens in one tensor, row after row, of [rows, tokens, channels] for each group."""
        return torch.cat([group.flatten(0, 1) for group in groups])[None]

    def groups(self, packed: Tensor) -> Groups:
        """The groups of what was packed, with or without a dimension for heads; they share its memory."""
        return rows_apart(packed[0], self.rows, self.tokens)

    def apply(self, operation: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """As EqualRows.apply, group by group: what a row has for all its tokens is never copied for each."""
        packed = next(operand for operand in operands if operand.shape[1] > 1)
        applied = torch.empty_like(packed)
        groups = [self.groups(x) if x.shape[1] > 1 else torch.split(x, list(self.rows)) for x in operands]
        for out, *group in zip(self.groups(applied), *groups, strict=True):
            operation(*group, out=out)
        return applied


@dataclass(frozen=True)
class Kinds:
    """A stream whose rows have tokens of several kinds, one behind another: what is for a row differs.

    bounds: by kind and group, where in a row the kind's tokens begin and end.
    """

    stream: EqualRows | MixedRows
    bounds: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many a row has, by group."""
        return self.stream.tokens

    def pack(self, groups: Groups) -> Tensor:
        """As the stream."""
        return self.stream.pack(groups)

    def groups(self, packed: Tensor) -> Groups:
        """As the stream."""
        return self.stream.groups(packed)

    def parts(self, kind: int) -> list[slice]:
        """Which of a row's tokens are of a kind, by group."""
        return [slice(start, end) for start, end in self.bounds[kind]]

    def cut(self, packed: Tensor, kind: int) -> Tensor:
        """Packed tokens of a kind."""
        groups = zip(self.groups(packed), self.parts(kind), strict=True)
        return self.stream.pack([group[:, part] for group, part in groups])

    def apply(self, operation: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """An elementwise operation on packed tokens, and on [rows, 1, kinds, channels] for each row's."""
        if isinstance(self.stream, EqualRows):
            of_kinds = [
                operation(*(x[:, start:end] if x.ndim == 3 else x[:, :, kind] for x in operands))
                for kind, ((start, end),) in enumerate(self.bounds)
            ]
            return torch.cat(of_kinds, dim=1)
        applied = torch.empty_like(next(operand for operand in operands if operand.ndim == 3))
        rows = list(self.stream.rows)
        for kind in range(len(self.bounds)):
            parts = self.parts(kind)
            groups = [
                [group[:, part] for group, part in zip(self.groups(x), parts, strict=True)]
                if x.ndim == 3
                else torch.split(x[:, :, kind], rows)
                for x in (applied, *operands)
            ]
            for out, *group in zip(*groups, strict=True):
                operation(*group, out=out)
        return applied


Stream: TypeAlias = EqualRows | MixedRows | Kinds
"""Tokens of one kind (the image's, the text's or both) of all rows."""


@dataclass(frozen=True)
class Streams:
    """The streams of a pass: image tokens, text tokens, and both of a row behind each other.

    references: how many of a row's last image tokens are those of references, by group.
    """

    image: Stream
    text: Stream
    both: Stream
    image_first: bool
    references: tuple[int, ...]

    @property
    def image_parts(self) -> list[slice]:
        """Which of a row's tokens are the image's, by group."""
        if self.image_first:
            return [slice(0, tokens) for tokens in self.image.tokens]
        return [slice(tokens, None) for tokens in self.text.tokens]

    @property
    def target_parts(self) -> list[slice]:
        """Which of a row's tokens are those of the picture that is made, by group."""
        first = [0] * len(self.text.tokens) if self.image_first else self.text.tokens
        sizes = zip(first, self.image.tokens, self.references, strict=True)
        return [slice(start, start + image - references) for start, image, references in sizes]

    def apart(self) -> Streams:
        """The same streams; a row has one thing for the picture's tokens and another for references'."""
        assert not isinstance(self.image, Kinds)
        sizes = zip(self.image.tokens, self.references, strict=True)
        return replace(self, image=_kinds(self.image, [[image - n, n] for image, n in sizes]))

    def targets(self, image: Groups) -> list[Tensor]:
        """Of each row's image tokens those of the picture that is made, by group."""
        return [
            tokens[:, : tokens.shape[1] - references]
            for tokens, references in zip(image, self.references, strict=True)
        ]

    def join(self, image: Tensor, text: Tensor) -> list[Tensor]:
        """Image and text of each row behind each other, by group."""
        pairs = zip(self.image.groups(image), self.text.groups(text), strict=True)
        return [torch.cat(pair if self.image_first else pair[::-1], dim=-2) for pair in pairs]

    def cut(self, both: Groups) -> tuple[Tensor, Tensor]:
        """Packed image tokens and packed text tokens of groups that have both."""
        image = [group[:, part] for group, part in zip(both, self.image_parts, strict=True)]
        if self.image_first:
            text = [group[:, n:] for group, n in zip(both, self.image.tokens, strict=True)]
        else:
            text = [group[:, :n] for group, n in zip(both, self.text.tokens, strict=True)]
        return self.image.pack(image), self.text.pack(text)


def kinds_of(rows: Sequence[Groups]) -> Kinds:
    """The kinds of groups whose rows are of these tensors, one behind another: [rows, tokens, channels].

    A group may lack the last kinds.
    """
    tokens = [[kind.shape[1] for kind in group] for group in rows]
    return _kinds(_stream([len(group[0]) for group in rows], [sum(each) for each in tokens]), tokens)


def rows_apart(packed: Tensor, rows: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
    """[..., all tokens, channels] as [rows, ..., tokens, channels] for each group, in the same memory."""
    parts = torch.split(packed, [n * m for n, m in zip(rows, tokens, strict=True)], dim=-2)
    return [
        torch.unflatten(part, -2, size).movedim(-3, 0) if size[0] > 1 else part[None]
        for part, *size in zip(parts, rows, tokens, strict=True)
    ]


def streams(
    image: Groups, text: Groups, *, image_first: bool, references: Sequence[int] | None = None
) -> Streams:
    """The streams of groups whose image and text are [rows, tokens, channels].

    `references`: how many of a row's last image tokens are those of references, by group; None for none.
    """
    rows = [len(group) for group in image]
    image_tokens, text_tokens = ([group.shape[1] for group in groups] for groups in (image, text))
    both = [sum(pair) for pair in zip(image_tokens, text_tokens, strict=True)]
    apart = _stream(rows, image_tokens), _stream(rows, text_tokens)
    of_references = tuple(references or [0] * len(rows))
    return Streams(*apart, _stream(rows, both), image_first, of_references)


def stream_of(groups: Groups) -> Stream:
    """The stream of groups of [rows, tokens, channels]."""
    return _stream([len(group) for group in groups], [group.shape[1] for group in groups])


def _stream(rows: Sequence[int], tokens: Sequence[int]) -> EqualRows | MixedRows:
    return EqualRows((tokens[0],)) if len(rows) == 1 else MixedRows(tuple(rows), tuple(tokens))


def _kinds(stream: EqualRows | MixedRows, tokens: Sequence[Sequence[int]]) -> Kinds:
    """`tokens`: how many of each kind a row has, by group."""
    ends = [[0, *itertools.accumulate(each)] for each in tokens]
    most = max(map(len, ends))
    bounds = zip(*(itertools.pairwise(each + each[-1:] * (most - len(each))) for each in ends), strict=True)
    return Kinds(stream, tuple(bounds))
