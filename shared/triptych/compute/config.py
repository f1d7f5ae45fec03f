"""A model's config.json as a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class ModelConfig:
    """The keys of a component's config.json that decide its architecture, with diffusers' defaults.

    Raises:
        ValueError: for a value that the implementation does not support.
    """

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Reads a diffusers config; keys it does not know are bookkeeping and ignored, null is no value."""
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        return cls(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
        )

    def check_only(self, whose: str, **only: Any) -> None:
        """Raises ValueError for a key that has another value than the only one that such models have."""
        for name, value in only.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}; {whose} have {value}")
