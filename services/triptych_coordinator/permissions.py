"""Which models and LoRAs a caller may use, and what of others' requests it may find remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from triptych.errors import permission_denied
from triptych.serving.callers.caller import Caller


def check_permitted(caller: Caller | None, model: str, loras: Iterable[str] = ()) -> None:
    """Raises TriptychError with PERMISSION_DENIED that names what the caller may not use.

    That it may not is said whether or not there is such a LoRA.
    """
    if caller is None:
        return
    if not caller.may_use_model(model):
        raise permission_denied(f"{caller} may not use the model {model!r}, but {_listed(caller.models)}")
    for name in loras:
        if not caller.may_use_lora(name):
            raise permission_denied(
                f"{caller} may not use the LoRA {name[:60]!r}, but {_listed(caller.loras)}"
            )


def cache_scope(caller: Caller | None) -> bytes:
    """What stands for a caller where prompts are remembered: its digest, since stages need not know it."""
    return b"" if caller is None else hashlib.sha256(caller.share.encode()).digest()


def _listed(patterns: Iterable[str]) -> str:
    return ", ".join(map(repr, patterns)) or "none"
