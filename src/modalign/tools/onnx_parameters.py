"""How many parameters an ONNX file holds, read from its protobuf without the onnx package.

Counted are the values of floating-point tensors: the graph's initializers and its Constant nodes (some
converters keep weights there). Field numbers are those of onnx.proto, format version IR 3 and later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOATING = {1, 10, 11, 16}  # TensorProto.DataType: float, float16, double, bfloat16
_GRAPH, _NODE, _INITIALIZER, _ATTRIBUTE, _TENSOR = 7, 1, 5, 5, 5
_DIMENSIONS, _DATA_TYPE = 1, 2

Field = tuple[int, int | memoryview]


def onnx_parameters(path: Path) -> int:
    """Values of all floating-point tensors of a model."""
    model = memoryview(path.read_bytes())
    return sum(_size(tensor) for graph in _sub(model, _GRAPH) for tensor in _tensors(graph))


def _tensors(graph: memoryview) -> Iterator[memoryview]:
    yield from _sub(graph, _INITIALIZER)
    for node in _sub(graph, _NODE):
        for attribute in _sub(node, _ATTRIBUTE):
            yield from _sub(attribute, _TENSOR)


def _size(tensor: memoryview) -> int:
    dimensions: list[int] = []
    floating = False
    for number, value in _fields(tensor):
        if number == _DIMENSIONS:
            dimensions += [value] if isinstance(value, int) else _packed(value)
        elif number == _DATA_TYPE:
            floating = value in _FLOATING
    return math.prod(dimensions) if floating else 0


def _sub(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The sub-messages in one field."""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[Field]:
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if length is None:
            length, place = _varint(message, place)
        yield number, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _packed(values: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(values):
        value, place = _varint(values, place)
        found.append(value)
    return found
