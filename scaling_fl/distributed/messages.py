"""The objects that workers send each other: pickled, and read by a restricted unpickler that runs no code."""

import pickle
from typing import Any, TypeVar

T = TypeVar("T")
_NUMPY = ("numpy", "numpy._core.multiarray", "numpy._core.numeric", "numpy.core.multiarray")
_sendable: set[tuple[str, str]] = set()


def sendable(cls: type[T]) -> type[T]:
    """Class decorator: allow instances of this class in messages. Its fields must be sendable, too."""
    _sendable.add((cls.__module__, cls.__qualname__))
    return cls


class SafeUnpickler(pickle.Unpickler):
    """Unpickles only numpy arrays, plain values and `sendable` classes: the bytes may come from the network."""

    def find_class(self, module: str, name: str) -> Any:
        array = module in _NUMPY and name in ("ndarray", "dtype", "_reconstruct", "_frombuffer")
        if array or (module, name) in _sendable:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not a class that workers may send each other")
