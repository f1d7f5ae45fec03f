"""CLIP's tokenizer: lower-case byte-level byte pair encoding, words ended by </w>, between two marks.

    text   -> NFC, white space made single spaces, lower case
           -> words, digits one by one, runs of other signs
           -> the pairs of bytes that are merged, in the order of the merges
           -> <|startoftext|> ... <|endoftext|>

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021
(https://arxiv.org/abs/2103.00020), section 2.4, and its authors' clip/simple_tokenizer.py. The tokens are
those of transformers' CLIPTokenizer: importing that takes a third of a text encoder's start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import RobertaProcessing

START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
"""What marks are, unless a folder says otherwise."""
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NO_LIMIT = 10**30
"""The most tokens of a folder that names no number, as in transformers."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of texts or of a text: a list for each text, or the one of a text alone.

    attention_mask: 1 for tokens and marks, 0 for padding.
    offset_mapping: start and end of each token's characters.
    """

    input_ids: Any
    attention_mask: Any
    offset_mapping: list[Any]


class ClipTokenizer:
    """The part of CLIPTokenizer that a tower needs, by the same names."""

    vocab_files_names: ClassVar = {"vocab": "vocab.json", "merges": "merges.txt", "whole": "tokenizer.json"}

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: list[tuple[str, str]],
        roles: Mapping[str, Any],
        added: list[AddedToken],
        config: Mapping[str, Any],
    ) -> None:
        """`roles` are names of marks, or an AddedToken's fields; `added` are tokens beside them."""
        roles = {**ROLES, **roles}
        names = {role: mark if isinstance(mark, str) else mark["content"] for role, mark in roles.items()}
        self._tokenizer = Tokenizer(
            BPE(
                vocabulary,
                [(left, right) for left, right in merges],
                unk_token=names["unk_token"],
                end_of_word_suffix="</w>",
            )
        )
        self._tokenizer.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
        words = Split(Regex(WORDS), behavior="removed", invert=True)
        self._tokenizer.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=False)])
        self._tokenizer.add_tokens(list(_with_marks(added, roles)))
        start, end = ((names[role], self._id(names[role])) for role in ("bos_token", "eos_token"))
        self._tokenizer.post_processor = RobertaProcessing(
            end, start, trim_offsets=False, add_prefix_space=False
        )
        self._padding = {"pad_token": names["pad_token"], "pad_id": self._id(names["pad_token"])}
        self._padding["direction"] = config.get("padding_side", "right")
        self._truncation_side = config.get("truncation_side", "right")
        self.model_max_length = int(config.get("model_max_length", config.get("max_len")) or NO_LIMIT)

    @classmethod
    def from_pretrained(cls, folder: Path, **_: Any) -> ClipTokenizer:
        """Reads tokenizer.json, or vocab.json and merges.txt, and what is said beside them of marks."""
        config, whole = _read(folder / "tokenizer_config.json"), _read(folder / "tokenizer.json")
        if whole:
            vocabulary, pairs = whole["model"]["vocab"], whole["model"]["merges"]
            merges: Any = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in pairs]
        else:
            vocabulary, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        told = "added_tokens_decoder" in config
        said = config if told else config | _read(folder / "special_tokens_map.json")
        roles = {name: mark for name, mark in said.items() if _is_role(name, mark)}
        extras = said.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        roles |= {str(number): mark for number, mark in enumerate(extras)}
        if told:
            added = {int(index): token for index, token in config["added_tokens_decoder"].items()}
        else:
            names = _read(folder / "added_tokens.json")
            added = {
                index: {"content": name, "normalized": name not in roles.values()}
                for name, index in names.items()
            }
            added |= {token["id"]: token for token in whole.get("added_tokens", [])}
        tokens = [AddedToken(**_fields(added[index])) for index in sorted(added)]
        return cls(vocabulary, merges, roles, tokens, config)

    def __call__(
        self,
        text: str | list[str],
        *,
        add_special_tokens: bool = True,
        padding: str | bool = False,
        truncation: bool = False,
        max_length: int = NO_LIMIT,
        return_tensors: str | None = None,
        **_: Any,
    ) -> Tokens:
        """The tokens of texts, cut off at max_length with truncation and filled up to it with padding.

        return_tensors: None for lists, else int64 tensors [texts, tokens].
        """
        if truncation:
            self._tokenizer.enable_truncation(max_length, direction=self._truncation_side)
        else:
            self._tokenizer.no_truncation()
        if padding:
            self._tokenizer.enable_padding(**self._padding, length=max_length)
        else:
            self._tokenizer.no_padding()
        if isinstance(text, str):
            one = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return Tokens(one.ids, one.attention_mask, one.offsets)
        several = self._tokenizer.encode_batch(text, add_special_tokens=add_special_tokens)
        ids, masks = [one.ids for one in several], [one.attention_mask for one in several]
        offsets = [one.offsets for one in several]
        if return_tensors is None:
            return Tokens(ids, masks, offsets)
        import torch

        return Tokens(torch.tensor(ids), torch.tensor(masks), offsets)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def num_special_tokens_to_add(self) -> int:
        """How many marks a text has."""
        return self._tokenizer.num_special_tokens_to_add(is_pair=False)

    def _id(self, token: str) -> int:
        """Raises ValueError for a token that is in no file."""
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f"there is no token {token}")
        return index


def _read(file: Path) -> dict[str, Any]:
    """What is in a JSON file; nothing if there is none."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def _is_role(name: str, mark: object) -> bool:
    return name.endswith("_token") and isinstance(mark, str | dict)


def _fields(mark: Mapping[str, Any]) -> dict[str, Any]:
    """Of an AddedToken, without what files have besides."""
    return {name: value for name, value in mark.items() if name not in ("__type", "id")}


def _with_marks(added: list[AddedToken], roles: Mapping[str, Any]) -> Iterator[AddedToken]:
    """The added tokens, then the marks that are not among them; none of which is split or changed."""
    marks = {mark if isinstance(mark, str) else mark["content"]: mark for mark in roles.values()}
    for token in added:
        token.special = token.special or token.content in marks
        yield token
    known = {token.content for token in added}
    for mark in (mark for name, mark in marks.items() if name not in known):
        fields = {"content": mark} if isinstance(mark, str) else _fields(mark)
        yield AddedToken(**fields | {"special": True})
