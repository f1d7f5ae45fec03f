"""What stages answer, checked: a stage that answers nonsense, or as another one would, is found out."""

from collections.abc import Sequence
from typing import Any

import grpc
from numpy.typing import NDArray

from triptych import errors
from triptych.errors import TriptychError
from triptych.tensors import message_to_array
from triptych.wire.messages import TensorLike


def read_array(message: TensorLike, field: str, dtype: str, shape: Sequence[int | str]) -> NDArray[Any]:
    """The array in an answer. Raises TriptychError with INTERNAL if it is not of that dtype and shape."""
    try:
        return message_to_array(message, field, dtypes=[dtype], shape=shape)
    except TriptychError as error:
        raise nonsense(f"a stage's answer: {error.message}") from error


def check_fingerprint(answered: str, expected: str) -> None:
    """Raises TriptychError with UNAVAILABLE if the replica is no longer the one that it was."""
    if answered != expected:
        raise errors.unavailable(f"it computes otherwise than before: {answered} is its fingerprint now")


def nonsense(message: str) -> TriptychError:
    """INTERNAL: a stage broke its contract."""
    return TriptychError(grpc.StatusCode.INTERNAL, message)
