"""How many parameters an ONNX file holds, read by protobuf (onnxruntime needs it) without the onnx package.

Counted are the values of floating-point tensors: the graph's initializers and its Constant nodes (some
converters keep weights there). Only the fields that lead to tensors are declared; others are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_FLOATING = {1, 10, 11, 16}  # TensorProto.DataType: float, float16, double, bfloat16
# message -> field -> number and type, as in onnx.proto from format version IR 3 on
_MESSAGES = {
    "Model": {"graph": (7, "Graph")},
    "Graph": {"node": (1, "Node"), "initializer": (5, "Tensor")},
    "Node": {"attribute": (5, "Attribute")},
    "Attribute": {"tensor": (5, "Tensor")},
    "Tensor": {"dimensions": (1, "int64"), "data_type": (2, "int32")},
}


def onnx_parameters(path: Path) -> int:
    """Return the number of values of all floating-point tensors of a model."""
    model = _model_class().FromString(path.read_bytes())
    tensors = (tensor for graph in model.graph for tensor in _tensors(graph))
    return sum(math.prod(each.dimensions) for each in tensors if _FLOATING & set(each.data_type))


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensor


@cache
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    plain = {"int32": kinds.TYPE_INT32, "int64": kinds.TYPE_INT64}
    file = descriptor_pb2.FileDescriptorProto(name="modalign_onnx.proto", package="modalign_onnx")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            one = message.field.add(name=field, number=number, label=kinds.LABEL_REPEATED)
            one.type = plain.get(kind, kinds.TYPE_MESSAGE)
            if kind not in plain:
                one.type_name = f".modalign_onnx.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("modalign_onnx.Model"))
