"""What stages answer, checked: a stage that answers nonsense, or as another one would, is found out.

The checks belong into an attempt, so that another replica is asked.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych import errors
from triptych.errors import TriptychError
from triptych.tensors import message_to_array
from triptych.wire.messages import TensorLike

FLOATS = ("float32", "float16", "bfloat16")


def read_array(
    message: TensorLike, field: str, dtypes: Collection[str], shape: Sequence[int | str]
) -> NDArray[Any]:
    """The array in an answer.

    Raises:
        TriptychError: INTERNAL if it is not of such a dtype and shape, or not finite.
    """
    try:
        array = message_to_array(message, field, dtypes=dtypes, shape=shape)
    except TriptychError as error:
        raise nonsense(error.message) from error
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise nonsense(f"{field}: not all of it is finite")
    return array


def check_fingerprint(answered: str, expected: str) -> None:
    """Raises TriptychError with UNAVAILABLE if the replica is no longer the one that it was."""
    if answered != expected:
        raise errors.unavailable(f"it computes otherwise than before: {answered} is its fingerprint now")


def nonsense(message: str) -> TriptychError:
    """INTERNAL: a stage broke its contract."""
    return errors.internal(f"its answer is nonsense: {message}")
