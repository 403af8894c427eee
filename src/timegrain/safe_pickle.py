"""Pickles from strangers, read without running anything they contain.

The official Kinetics-GEBD and VidSitu files are pickles, and a pickle is a program: by itself, reading one can start
any command. Here only plain data comes out (numbers, strings, bytes, lists, tuples, dicts, sets, booleans, None, NumPy
arrays and scalars). NumPy's own rebuilding functions are not called either: arrays are made here from checked
shapes, plain element types and raw bytes, so that a forged element type cannot reach NumPy's memory.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

_PLAIN_KINDS = "biufcSUO"


class Record:
    """An object of a class that was named as readable: its attributes, and none of its code."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


class _ElementType:
    """The element type of an array, kept as text until it is needed."""

    __slots__ = ("order", "spec")

    def __init__(self, spec: Any, *_: Any) -> None:
        if not isinstance(spec, str) or np.dtype(spec).kind not in _PLAIN_KINDS:
            raise ValueError(f"an array of element type {spec!r}; only plain numbers and text are read")
        self.spec, self.order = spec, "="

    def __setstate__(self, state: Any) -> None:
        order, subarray, names, fields = state[1:5]
        if any(part is not None for part in (subarray, names, fields)) or order not in ("<", ">", "=", "|"):
            raise ValueError("an array with a structured element type; only plain numbers and text are read")
        self.order = order

    def build(self) -> np.dtype[Any]:
        """The NumPy element type."""
        return np.dtype(self.spec).newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """An array that is being read; :func:`_finish` puts the real one in its place."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, element, fortran, data = state
        self.value = _array(data, element, shape, "F" if fortran else "C")


def _array(data: Any, element: _ElementType, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    dtype = element.build()
    if dtype.kind == "O":
        flat = np.empty(len(data), dtype=object)
        for index, item in enumerate(data):  # one by one: items may be lists themselves
            flat[index] = item
    else:
        flat = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype=dtype).copy()
    array = flat.reshape(tuple(shape), order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(tuple(axes))  # of arrays that lie in memory in another order


def _scalar(element: _ElementType, data: Any) -> Any:
    dtype = element.build()
    if dtype.kind == "O":
        raise ValueError("a NumPy scalar that is an object")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype=dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _bytes(data: bytes | str = b"", encoding: str = "latin1") -> bytes:
    # a number, which would ask for that much memory, is refused by memoryview
    return _encode(data, encoding) if isinstance(data, str) else bytes(memoryview(data))


def _bytearray(data: bytes | str = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(_bytes(data, encoding))


def _rebuild(*_: Any) -> _Array:
    return _Array()


_ALLOWED: dict[str, Any] = {
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.dtype": _ElementType,
    "numpy.ndarray": object(),  # only ever an argument of the rebuilding function
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _rebuild,
    "numpy.core.numeric._frombuffer": _array,
}


class _PlainUnpickler(pickle.Unpickler):
    """Finds only what :data:`_ALLOWED` holds, and the classes named as records."""

    def __init__(self, file: Any, records: Collection[str]) -> None:
        super().__init__(file, encoding="latin1")
        self.records = records
        self.has_arrays = False
        self.has_records = False

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in self.records:
            self.has_records = True
            return type("Record", (Record,), {"class_name": full})
        plain = full.replace("numpy._core.", "numpy.core.", 1).replace("__builtin__.", "builtins.", 1)
        if plain not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {full}, which is neither plain data nor a NumPy array")
        found = _ALLOWED[plain]
        if plain.endswith("._reconstruct"):
            self.has_arrays = True
        if found in (_array, _scalar, _encode, _bytes, _bytearray, _rebuild):
            return _fresh(found)  # a pickle may set attributes of what it is given: give it a copy
        return found


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments)


def _finish(value: Any, seen: dict[int, Any]) -> Any:
    """Replace every unfinished array inside ``value``; shared and circular references stay what they were."""
    if isinstance(value, _Array):
        array = value.value
        if array.dtype == object and id(array) not in seen:
            seen[id(array)] = array
            for index in np.ndindex(array.shape):
                array[index] = _finish(array[index], seen)
        return array
    if not isinstance(value, dict | list | tuple | set | Record):
        return value
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, tuple):
        finished: Any = tuple(_finish(item, seen) for item in value)
        seen[id(value)] = finished
        return finished
    seen[id(value)] = value
    if isinstance(value, list):
        value[:] = [_finish(item, seen) for item in value]
    elif isinstance(value, dict):
        for key in value:
            value[key] = _finish(value[key], seen)
    elif isinstance(value, Record):
        _finish(vars(value), seen)
    return value


def load_pickle(path: str | os.PathLike[str], *, records: Collection[str] = ()) -> Any:
    """Read a pickle that holds plain data; nothing in it is executed.

    Args:
        path: The file.
        records: Full names of classes (``module.Class``) whose objects are read as a bare :class:`Record` with the
            same attributes, for files such as VidSitu's vocabulary. The classes themselves are never imported.

    Returns:
        What the pickle holds: numbers, text, bytes, lists, tuples, dicts, sets, NumPy arrays and scalars.

    Raises:
        ValueError: The file is no pickle, is cut short, or asks for anything but plain data; the message names the
            file and what it asks for.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        unpickler = _PlainUnpickler(file, records)
        try:
            value = unpickler.load()
            return _finish(value, {}) if unpickler.has_arrays else value
        except OSError:
            raise
        except Exception as error:  # a forged file can make the reader fail in any way
            reason = str(error) or type(error).__name__
            raise ValueError(f"{path}: refused or unreadable as a pickle of plain data: {reason}") from error
