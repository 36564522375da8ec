"""NumPy arrays over rack memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer


def array_over(
    memory: Buffer, nbytes: int, dtype: npt.DTypeLike, shape: int | Sequence[int] | None, offset: int
) -> np.ndarray[Any, Any]:
    """A view of the memory as an array, writable if that is; ``shape`` defaults to one dimension over the rest."""
    import math  # on demand, like numpy: programs without arrays start faster

    import numpy

    element = numpy.dtype(dtype)
    if shape is None:
        return numpy.frombuffer(memoryview(memory), element, (nbytes - offset) // element.itemsize, offset)
    dimensions = (shape,) if isinstance(shape, int) else tuple(shape)
    # frombuffer, not ndarray(buffer=…): that one lets go of the buffer at once, and with it of the borrow.
    return numpy.frombuffer(memoryview(memory), element, math.prod(dimensions), offset).reshape(dimensions)
