"""Read TensorFlow checkpoints without TensorFlow.

A checkpoint PREFIX is two kinds of files. ``PREFIX.index`` is an uncompressed table in LevelDB's form: blocks of
prefix-compressed keys, an index block that lists them and a footer of 48 bytes; its values are small protocol buffers
that say where each tensor lies. ``PREFIX.data-0000i-of-0000n`` holds the tensors as raw little-endian bytes.
Nothing in the files is run. Layout: TensorFlow's tensor_bundle.proto and LevelDB's doc/table_format.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression type and checksum after each block
_STRING = 7
_BFLOAT16 = 14
_DTYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 5: "<i2", 6: "|i1", 9: "<i8", 10: "|b1", _BFLOAT16: "<u2", 17: "<u2",
    19: "<f2", 22: "<u4", 23: "<u8",
}  # fmt: skip


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies (BundleEntryProto)."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int


def read_tf_checkpoint(prefix: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All numeric tensors of a checkpoint.

    Args:
        prefix: The checkpoint's name as TensorFlow gives it, such as ``ckpt-5``; ``ckpt-5.index`` works too.

    Returns:
        Key -> array. bfloat16 becomes float32. Strings (the object graph) are left out.

    Raises:
        FileNotFoundError: The index or a data file is missing.
        ValueError: A file is damaged, cut or of a form that is not supported. The index is checked against its
            checksums, the data files against their length only.
    """
    prefix = Path(str(prefix).removesuffix(".index"))
    index = Path(f"{prefix}.index")
    if not index.is_file():
        folder = prefix if prefix.is_dir() else prefix.parent
        near = sorted(str(path.with_suffix("")) for path in folder.glob("*.index"))
        hint = f"; there are {', '.join(near[:5])}" if near else ""
        raise FileNotFoundError(f"no TensorFlow checkpoint {prefix}: {index.name} does not exist{hint}")
    try:
        entries = dict(_table(index.read_bytes()))
        num_shards = _num_shards(entries.pop(b"", b""))
        places = {key.decode(): _entry(value) for key, value in entries.items()}
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{index} is damaged: {error}") from error
    except ValueError as error:
        raise ValueError(f"{index}: {error}") from error
    shards = [Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}") for shard in range(num_shards)]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"the checkpoint {prefix} lacks its data file {shard.name}")
    data = [np.memmap(shard, np.uint8, "r") if shard.stat().st_size else np.empty(0, np.uint8) for shard in shards]
    return {key: _tensor(prefix, key, place, data) for key, place in sorted(places.items()) if place.dtype != _STRING}


def _tensor(prefix: Path, key: str, place: _Entry, data: list[np.ndarray]) -> np.ndarray:
    if place.dtype not in _DTYPES:
        raise ValueError(f"{prefix}: tensor {key} has TensorFlow's data type {place.dtype}, which is not supported")
    dtype = np.dtype(_DTYPES[place.dtype])
    if place.size != prod(place.shape) * dtype.itemsize or min(place.shape, default=0) < 0:
        raise ValueError(f"{prefix}: tensor {key} of shape {place.shape} cannot have {place.size} bytes")
    if place.shard >= len(data) or place.offset + place.size > len(data[place.shard]):
        raise ValueError(f"{prefix}: tensor {key} lies outside its data file, which seems to be cut")
    raw = np.array(data[place.shard][place.offset : place.offset + place.size])
    array = raw.view(dtype).reshape(place.shape)
    if place.dtype == _BFLOAT16:  # the upper half of a float32
        return (array.astype("<u4") << 16).view("<f4")
    return array


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a LevelDB table."""
    if len(data) < _FOOTER_BYTES or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("this is not a TensorFlow checkpoint's index, or it is cut (its footer is not there)")
    footer = data[-_FOOTER_BYTES:]
    position = 0
    for _ in range(2):  # the metaindex block's handle: not needed
        _, position = _varint(footer, position)
    offset, position = _varint(footer, position)
    size, _ = _varint(footer, position)
    for _, handle in _block(data, offset, size):
        offset, position = _varint(handle, 0)
        size, _ = _varint(handle, position)
        yield from _block(data, offset, size)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block: keys share a prefix with the key before."""
    end = offset + size
    if end + _TRAILER_BYTES > len(data) or size < 4:
        raise ValueError("a block lies outside the file")
    if data[end] != 0:
        raise ValueError("the table is compressed, which TensorFlow does not do for checkpoints")
    if int.from_bytes(data[end + 1 : end + 5], "little") != _masked_crc32c(data[offset : end + 1]):
        raise ValueError("a checksum does not fit: the file is damaged")
    block = data[offset:end]
    num_restarts = int.from_bytes(block[-4:], "little")
    stop = size - 4 * (num_restarts + 1)
    position, key = 0, b""
    while position < stop:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in seven-bit groups, least first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protocol buffer message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a protocol buffer holds a field of wire type {kind}")
        if position + length > len(message):
            raise ValueError("a protocol buffer is cut")
        yield tag >> 3, message[position : position + length]
        position += length


def _num_shards(header: bytes) -> int:
    fields = dict(_fields(header))
    shards = fields.get(1, 0)
    if not isinstance(shards, int) or not 1 <= shards <= 100_000:
        raise ValueError("the header of the checkpoint is missing or damaged")
    if fields.get(2, 0) != 0:
        raise ValueError("the checkpoint is big-endian, which is not supported")
    return shards


def _entry(message: bytes) -> _Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: list[int] = []
    for number, value in _fields(message):
        if number == 7:
            raise ValueError("the checkpoint holds tensors cut into slices, which is not supported")
        if number == 2 and isinstance(value, bytes):
            for inner, dimension in _fields(value):
                if inner == 2 and isinstance(dimension, bytes):
                    size = dict(_fields(dimension)).get(1, 0)
                    if not isinstance(size, int):
                        raise ValueError("the shape of a tensor is damaged")
                    shape.append(size)
        elif number in numbers and isinstance(value, int):
            numbers[number] = value
    return _Entry(numbers[1], tuple(shape), numbers[3], numbers[4], numbers[5])


@cache
def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, reversed
        table.append(value)
    return table


def _masked_crc32c(data: bytes) -> int:
    """CRC-32C, rotated and shifted by a constant as LevelDB stores it."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
