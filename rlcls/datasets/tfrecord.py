"""Reads TFRecord files of `tf.train.Example` without TensorFlow.

A record consists of its length (uint64), a masked CRC-32C of the length, the data, and a masked CRC-32C of the data,
all little-endian. An Example is a protocol buffer. Its field 1 is a Features message, whose field 1 is a map from names
to Feature messages. A Feature has bytes (field 1), floats (field 2) or integers (field 3), as a list in the field 1 of
that message.

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/example.proto and feature.proto.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlcls._errors import UserError, install


def records(file: gzip.GzipFile) -> Iterator[bytes]:
    """The data of each record in a gzipped file.

    Raises:
      EOFError: the file ends within a record.
      ValueError: a checksum differs.
    """
    number = 0
    while head := file.read(12):
        if len(head) < 12:
            raise EOFError
        length, checksum = struct.unpack("<QI", head)
        if _masked_crc(head[:8]) != checksum:
            raise ValueError(f"the length of record {number} does not match its checksum")
        data, tail = file.read(length), file.read(4)
        if len(data) < length or len(tail) < 4:
            raise EOFError
        if _masked_crc(data) != struct.unpack("<I", tail)[0]:
            raise ValueError(f"record {number} does not match its checksum")
        yield data
        number += 1


def example(data: bytes) -> dict[str, Any]:
    """The features of a serialised Example: lists of bytes, float32 arrays or int64 arrays by name.

    Raises:
      ValueError: the data are not an Example.
    """
    features: dict[str, Any] = {}
    for field, fields in _fields(memoryview(data)):
        for inner, entry in _fields(fields) if field == 1 else ():
            if inner == 1:
                parts = dict(_fields(entry))
                features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b"")))
    return features


def _feature(data: memoryview) -> Any:
    for kind, values in _fields(data):
        parts = [value for field, value in _fields(values) if field == 1]
        if kind == 1:
            return [bytes(part) for part in parts]
        if kind == 2:  # packed floats, or one float per field
            return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)
        if kind == 3:
            numbers: list[int] = []
            for part in parts:
                numbers += [part] if isinstance(part, int) else _varints(part)
            return np.array(numbers, np.uint64).astype(np.int64)
    return []


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """(number, contents) of each field: an int for a varint, a memoryview for anything else."""
    if isinstance(data, int):
        raise ValueError("it has a number instead of a message")
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is unknown")
        if at + size > len(data):
            raise ValueError("a field is longer than its message")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: Any, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at


def _varints(data: Any) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers


def _masked_crc(data: bytes) -> int:
    try:
        import google_crc32c
    except ImportError as error:
        raise UserError(f"TFRecord files need google-crc32c: {install('data')} ({error})") from None
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
