"""What a LoRA's configuration says of alphas and ranks: PEFT's, diffusers' record of it, and kohya's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METADATA = "lora_adapter_metadata"
"""Where diffusers' save_lora_weights puts the configurations that PEFT trained with, by component."""

MAX_CONFIG_BYTES = 1 << 20
MAX_FLOAT32 = 3.4028235e38
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Config:
    """What a file's configuration says of alphas and ranks.

    stored: PEFT's, by the names that it has there.
    network_alpha: kohya's one alpha, for files of its layout that lost those of the modules.
    """

    stored: Mapping[str, Any]
    network_alpha: float | None = None

    @classmethod
    def read(cls, beside: Iterable[Path], metadata: Mapping[str, str], components: Sequence[str]) -> Config:
        """Of the file beside a LoRA, else of its metadata. Raises ValueError."""
        if metadata.get(METADATA):
            named = _json_object(metadata[METADATA], f"its {METADATA}")
            plain = {key: value for key, value in named.items() if "." not in key}
            for component in components:
                prefix = f"{component}."
                plain |= {
                    key.removeprefix(prefix): each for key, each in named.items() if key.startswith(prefix)
                }
            stored = plain
        else:
            names = ("lora_alpha", "r", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora")
            stored = {name: _loosely(metadata[name]) for name in names if metadata.get(name)}
        for path in beside:
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ValueError(f"{path} has more than {MAX_CONFIG_BYTES} bytes")
            stored = _json_object(path.read_text("utf-8", errors="replace"), str(path))
        initial = str(stored.get("init_lora_weights", "")).lower()
        if initial.startswith(_BASE_CHANGED):
            raise ValueError(
                f"it was trained on weights that {initial} changed: have PEFT save it as a plain LoRA"
            )
        network = metadata.get("ss_network_alpha")
        known = network not in (None, "", "None")
        return cls(stored, (_number(network, "ss_network_alpha") or None) if known else None)

    @property
    def use_dora(self) -> bool:
        """Whether the low ranks need magnitudes."""
        return bool(self.stored.get("use_dora"))

    def scale(self, names: Sequence[str], rank: int | None) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA; 1 without alpha.

        Args:
            names: the module's, in the file and in diffusers.
            rank: None if it is what the configuration says.
        """
        said = self._of("rank_pattern", names, self.stored.get("r"))
        rank_said = None if said is None else _number(said, "r")
        if rank is None:
            rank = int(rank_said or 0) or None
        elif rank_said is not None and rank_said != rank:
            raise ValueError(f"{names[0]} has rank {rank}, but its configuration says {rank_said:g}")
        alpha = self.stored.get("lora_alpha", self.stored.get("alpha", self.network_alpha))
        alpha = self._of("alpha_pattern", names, alpha)
        if alpha is None or rank is None:
            return 1.0
        return _number(alpha, "alpha") / (math.sqrt(rank) if self.stored.get("use_rslora") else rank)

    def _of(self, patterns: str, names: Sequence[str], default: Any) -> Any:
        """A module's own value: of the first regular expression that matches the end of its name.

        As get_pattern_key in peft/utils/other.py, whose names have no prefix.
        """
        try:
            for pattern, value in (self.stored.get(patterns) or {}).items():
                if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                    return value
        except re.error as error:
            raise ValueError(f"{pattern!r} in its {patterns} is no regular expression: {error}") from error
        return default


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON object") from error


def _loosely(text: str) -> Any:
    """A value of the metadata, where all are text."""
    try:
        return json.loads(text.strip().replace("True", "true").replace("False", "false"))
    except ValueError:
        return text


def _number(value: Any, what: str) -> float:
    """A finite number that float32 holds. Raises ValueError."""
    try:
        number = float("x" if isinstance(value, bool) else value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_FLOAT32:
        raise ValueError(f"its {what} is {str(value)[:40]!r}, which is no finite number")
    return number
