"""Forms of weights that are known and not read, by a tensor that only they have."""

from __future__ import annotations

from collections.abc import Mapping

from triptych.checkpoints.formats.stored import Contents

FORMS: Mapping[str, str] = {
    ".wscales": "SVDQuant (nunchaku)",
    ".smooth_factor": "SVDQuant (nunchaku)",
    ".qzeros": "GPTQ or AWQ",
    ".qweight": "GPTQ, AWQ or SVDQuant",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "NVFP4",
    ".weight_scale_inv": "float8 with a scale per block",
    ".weight._data": "quanto",
}
"""By the end of a tensor's name."""


def refuse_other_forms(contents: Contents) -> Contents:
    """The same contents. Raises ValueError for weights of another form."""
    for end, form in FORMS.items():
        found = [name for name in contents.tensors if name.endswith(end)]
        if found:
            raise ValueError(f"its weights are quantized by {form} ({found[0]}), a form that is not read")
    return contents
