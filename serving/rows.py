"""Rows of a request: tensors of V2 or instances of V1, as an order's fields, and answers as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving import tensors
from serving.model import TensorSpec
from serving.pictures import picture_bytes
from serving.refusal import Refused


def instance_of(instance: Mapping[str, Any]) -> dict[str, Any]:
    """An order's fields from an instance of V1, whose pictures are {"b64": …}."""
    fields = dict(instance)
    if "image" in fields:
        image = fields["image"]
        fields["image"] = picture_bytes(image.get("b64") if isinstance(image, dict) else image)
    return fields


def rows_of(request: tensors.Request, known: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """An order's fields per row of a V2 request; an input of one row counts for all."""
    kinds = {tensor.name: tensor.datatype for tensor in known}
    if "prompt" not in request.inputs:
        raise Refused("input prompt is missing", param="prompt")
    count = request.inputs["prompt"].values.size
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, tensor in request.inputs.items():
        if name not in kinds:
            raise Refused(f"unknown input {name[:40]!r}; known are {', '.join(kinds)}", param=name[:40])
        wanted = kinds[name]
        if tensor.datatype != wanted and not (wanted.startswith("INT") and "INT" in tensor.datatype):
            raise Refused(f"input {name} is {tensor.datatype}; {wanted} is expected", param=name)
        if tensor.values.size not in (1, count):
            raise Refused(f"input {name} has {tensor.values.size} rows for {count} prompts", param=name)
        for row, value in zip(rows, np.broadcast_to(tensor.values.reshape(-1), (count,)), strict=True):
            if name == "image":
                row[name] = picture_bytes(value)
            elif wanted == "BYTES":
                row[name] = utf8(value, name)
            else:
                row[name] = value.item()
    return rows


def utf8(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Refused(f"input {name}: text that is not UTF-8", param=name) from None


def texts(name: str, values: Sequence[str]) -> tensors.Tensor:
    return tensors.Tensor(name=name, datatype="BYTES", values=tensors.bytes_array([text.encode() for text in values]))
