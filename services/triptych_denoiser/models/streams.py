"""How the tokens of a pass's rows lie in tensors: equal rows side by side, others one after the other.

What is done with each token alone (linears, norms, MLPs) does not ask whose token it is, so rows of any size
and text length share it. Only three things know rows: what modulates a row's tokens, attention, and the
positions. They go by groups of equal rows, and each group is computed as it would be alone.
"""

from __future__ import annotations

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
class RowsWithReferences:
    """A stream of image tokens in which a row has one thing for the picture's and another for references'.

    references: how many of a row's last tokens are those of references, by group.
    """

    stream: EqualRows | MixedRows
    references: tuple[int, ...]

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

    def apply(self, operation: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """An elementwise operation on packed tokens, and on [rows, 1, 2, channels] for each row's: the first
        for those of the picture, the second for those of references.
        """
        packed = next(operand for operand in operands if operand.ndim == 3)
        rows = [len(group) for group in self.groups(packed)]
        groups = [self.groups(x) if x.ndim == 3 else torch.split(x, rows) for x in operands]
        applied = []
        for tokens, references, *group in zip(self.tokens, self.references, *groups, strict=True):
            parts = slice(0, tokens - references), slice(tokens - references, tokens)
            of_parts = [
                operation(*(x[:, part] if x.ndim == 3 else x[:, :, index] for x in group))
                for index, part in enumerate(parts)
            ]
            applied.append(torch.cat(of_parts, dim=1))
        return self.pack(applied)


Stream: TypeAlias = EqualRows | MixedRows | RowsWithReferences
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
        assert not isinstance(self.image, RowsWithReferences)
        return replace(self, image=RowsWithReferences(self.image, self.references))

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


@dataclass(frozen=True)
class Kinds:
    """Tokens of several kinds behind each other in every row; what modulates a row differs between them.

    stream: all tokens.
    tokens: how many a row has of each kind, by group. A group may lack the last kinds.
    """

    stream: EqualRows | MixedRows
    tokens: tuple[tuple[int, ...], ...]

    def parts(self, kind: int) -> list[slice]:
        """Which of a row's tokens are of a kind, by group."""
        return [slice(sum(tokens[:kind]), sum(tokens[: kind + 1])) for tokens in self.tokens]

    def cut(self, packed: Tensor, kind: int) -> Tensor:
        """Packed tokens of a kind that every group has."""
        groups = zip(self.stream.groups(packed), self.parts(kind), strict=True)
        cut = [group[:, part] for group, part in groups]
        return cut[0] if len(cut) == 1 else torch.cat([group.flatten(0, 1) for group in cut])[None]

    def apply(self, operation: Callable[..., Tensor], *operands: Tensor | Sequence[Tensor]) -> Tensor:
        """As Stream.apply; what is for each row is given for every kind of its tokens."""
        kinds = max(map(len, self.tokens))
        if kinds == 1:
            return self.stream.apply(operation, *(x if isinstance(x, Tensor) else x[0] for x in operands))
        if isinstance(self.stream, EqualRows):
            parts = [self.parts(kind)[0] for kind in range(kinds)]
            of_kinds = [
                [x[:, part] if isinstance(x, Tensor) else x[kind] for x in operands]
                for kind, part in enumerate(parts)
            ]
            return torch.cat([operation(*each) for each in of_kinds], dim=1)
        applied = torch.empty_like(next(x for x in operands if isinstance(x, Tensor)))
        for kind in range(kinds):
            parts = self.parts(kind)
            groups = [
                [group[:, part] for group, part in zip(self.stream.groups(x), parts, strict=True)]
                if isinstance(x, Tensor)
                else torch.split(x[kind], list(self.stream.rows))
                for x in (applied, *operands)
            ]
            for out, *group in zip(*groups, strict=True):
                operation(*group, out=out)
        return applied


def kinds_of(rows: Sequence[Groups]) -> Kinds:
    """The kinds of groups whose rows are of these tensors, one behind another: [rows, tokens, channels]."""
    tokens = tuple(tuple(kind.shape[1] for kind in group) for group in rows)
    return Kinds(_stream([len(group[0]) for group in rows], [sum(each) for each in tokens]), tokens)


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
