"""Tensors of the Open Inference Protocol V2, however they travel: JSON, JSON with binary data behind it, gRPC.

Elements of BYTES are bytes here, untouched: a picture may be sent as it is. (KServe's own decoder for binary data over
REST makes strings of them, which no picture survives.) Everything malformed raises Refused with the reason.

Protocol: https://github.com/kserve/open-inference-protocol; binary data: Triton's extension_binary_data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.refusal import Refused

DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
_ELEMENTS: dict[str, tuple[tuple[type, ...], str]] = {
    "BO": ((bool,), "true or false"),
    "FP": ((int, float), "numbers"),
}
HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """values: an array of `shape`; of BYTES, an array of objects that are bytes."""

    name: str
    datatype: str
    values: NDArray[Any]

    @property
    def shape(self) -> list[int]:
        return list(self.values.shape)


@dataclass(frozen=True, kw_only=True)
class Request:
    """inputs by name. outputs: the ones asked for by name, and whether as binary data; all where none is named.

    binary: whether outputs that are not named come as binary data.
    """

    id: str | None = None
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, bool] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = False


def from_rest(body: bytes, *, header_length: str | None) -> Request:
    """The body of POST /v2/models/M/infer; header_length is what Inference-Header-Content-Length says."""
    end = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
            raise Refused(f"Inference-Header-Content-Length {header_length!r}: give the JSON part's length in bytes")
        end = int(header_length)
    try:
        document = orjson.loads(body[:end])
    except orjson.JSONDecodeError as error:
        raise Refused(f"the body is no JSON: {error}") from None
    document = _object(document, "the body")
    behind = memoryview(body)[end:]
    inputs: dict[str, Tensor] = {}
    for at, entry in enumerate(_list(document.get("inputs"), "inputs")):
        where = f"inputs[{at}]"
        entry = _object(entry, where)
        name, datatype, shape = _head(entry, where)
        size = _object(entry.get("parameters") or {}, f"{where}.parameters").get("binary_data_size")
        if size is None:
            values = _from_list(entry.get("data"), datatype, shape, where)
        else:
            if type(size) is not int or not 0 <= size <= len(behind):
                raise Refused(f"{where}: binary_data_size {size!r}, but {len(behind)} bytes are left behind the JSON")
            values, behind = _from_raw(bytes(behind[:size]), datatype, shape, where), behind[size:]
        _add(inputs, Tensor(name=name, datatype=datatype, values=values), where)
    if len(behind):
        raise Refused(f"{len(behind)} bytes behind the last input; do the binary_data_size parameters add up?")
    parameters = _object(document.get("parameters") or {}, "parameters")
    outputs = {}
    for at, entry in enumerate(_list(document.get("outputs") or [], "outputs")):
        entry = _object(entry, f"outputs[{at}]")
        wanted = _object(entry.get("parameters") or {}, f"outputs[{at}].parameters")
        outputs[_text(entry.get("name"), f"outputs[{at}].name")] = wanted.get("binary_data") is True
    return Request(
        id=None if document.get("id") is None else _text(document["id"], "id"),
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
        binary=parameters.get("binary_data_output") is True,
    )


def from_grpc(request: Any) -> Request:
    """A KServe `InferRequest` that came over gRPC."""
    inputs: dict[str, Tensor] = {}
    for at, given in enumerate(request.inputs):
        where = f"inputs[{at}]"
        name, datatype, shape = _head(
            {"name": given.name, "datatype": given.datatype, "shape": list(given.shape)}, where
        )
        if given._raw_data is not None:
            values = _from_raw(bytes(given._raw_data), datatype, shape, where)
        else:
            values = _from_list(list(given.data or []), datatype, shape, where)
        _add(inputs, Tensor(name=name, datatype=datatype, values=values), where)
    return Request(
        id=request.id or None,
        inputs=inputs,
        outputs={output.name: True for output in request.request_outputs or []},
        parameters=dict(_plain(request.parameters)),
        binary=True,
    )


def to_rest(
    outputs: Sequence[Tensor], *, request: Request, head: Mapping[str, Any], as_text: Mapping[str, Any]
) -> tuple[bytes, dict[str, str]]:
    """A response's body and headers.

    head: model_name, model_version, parameters. as_text: for outputs whose elements are no text, the function that
    makes JSON of an element (pictures become base64); those that are asked for as binary data stay as they are.
    """
    entries, behind = [], []
    for output in _asked(outputs, request):
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if request.outputs.get(output.name, request.binary):
            raw = raw_of(output)
            entry["parameters"] = {"binary_data_size": len(raw)}
            behind.append(raw)
        elif output.datatype == "BYTES":
            text = as_text.get(output.name, lambda element: element.decode())
            entry["data"] = [text(element) for element in output.values.reshape(-1)]
        else:
            entry["data"] = output.values.reshape(-1).tolist()
        entries.append(entry)
    document = {**head, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    content = orjson.dumps(document)
    if not behind:
        return content, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(content))}
    return b"".join([content, *behind]), headers


def to_grpc(outputs: Sequence[Tensor], *, request: Request, head: Mapping[str, Any]) -> Any:
    """A KServe `InferResponse` with raw contents."""
    from kserve import InferOutput, InferResponse

    made = []
    for output in _asked(outputs, request):
        tensor = InferOutput(name=output.name, shape=output.shape, datatype=output.datatype)
        tensor.set_data_from_numpy(output.values, binary_data=True)
        made.append(tensor)
    return InferResponse(response_id=request.id or "", infer_outputs=made, use_binary_outputs=True, **head)


def raw_of(tensor: Tensor) -> bytes:
    """Little endian, row by row; elements of BYTES with their length in four bytes in front."""
    if tensor.datatype != "BYTES":
        return tensor.values.astype(tensor.values.dtype.newbyteorder("<")).tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in tensor.values.reshape(-1))


def bytes_array(elements: Sequence[bytes], *, shape: Sequence[int] | None = None) -> NDArray[Any]:
    """An array of BYTES elements; numpy would make fixed-width strings of them, and cut zeros off."""
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array if shape is None else array.reshape(tuple(shape))


def _asked(outputs: Sequence[Tensor], request: Request) -> list[Tensor]:
    known = [output.name for output in outputs]
    if unknown := [name for name in request.outputs if name not in known]:
        raise Refused(f"unknown output {unknown[0]!r}; there are {', '.join(known)}", param="outputs")
    return [output for output in outputs if not request.outputs or output.name in request.outputs]


def _head(entry: Mapping[str, Any], where: str) -> tuple[str, str, list[int]]:
    datatype = _text(entry.get("datatype"), f"{where}.datatype")
    if datatype not in DTYPES:
        raise Refused(f"{where}.datatype {datatype[:20]!r}: allowed are {', '.join(DTYPES)}")
    shape = _list(entry.get("shape"), f"{where}.shape")
    if not all(type(side) is int and 0 <= side < 2**31 for side in shape) or len(shape) > 8:
        raise Refused(f"{where}.shape: give at most 8 whole numbers of 0 or more")
    return _text(entry.get("name"), f"{where}.name"), datatype, shape


def _from_list(data: Any, datatype: str, shape: list[int], where: str) -> NDArray[Any]:
    flat: list[Any] = []
    stack = [iter(_list(data, f"{where}.data"))]
    while stack:  # nested rows are allowed, and may be nested deeper than Python's own stack
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            flat.append(value)
        else:
            stack.pop()
    _counted(len(flat), shape, where)
    if datatype == "BYTES":
        if not all(isinstance(value, (str, bytes)) for value in flat):
            raise Refused(f"{where}.data: elements of BYTES are strings")
        return bytes_array([_encoded(v, where) if isinstance(v, str) else v for v in flat], shape=shape)
    allowed, words = _ELEMENTS.get(datatype[:2], ((int,), "whole numbers"))
    if not all(type(value) in allowed for value in flat):
        raise Refused(f"{where}.data: elements of {datatype} are {words}")
    try:
        return np.array(flat, dtype=DTYPES[datatype]).reshape(shape)
    except (OverflowError, ValueError):
        raise Refused(f"{where}.data: a number is too large for {datatype}") from None


def _from_raw(raw: bytes, datatype: str, shape: list[int], where: str) -> NDArray[Any]:
    if datatype != "BYTES":
        dtype = np.dtype(DTYPES[datatype]).newbyteorder("<")
        if len(raw) % dtype.itemsize:
            raise Refused(f"{where}: {len(raw)} bytes are no whole number of {datatype} elements")
        _counted(len(raw) // dtype.itemsize, shape, where)
        return np.frombuffer(raw, dtype=dtype).astype(DTYPES[datatype]).reshape(shape)
    elements, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        if at + 4 + size > len(raw):
            raise Refused(f"{where}: an element of BYTES says {size} bytes, {max(0, len(raw) - at - 4)} are left")
        elements.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
        if len(elements) > math.prod(shape):
            break  # more than promised: no need to hold them all
    _counted(len(elements), shape, where)
    return bytes_array(elements, shape=shape)


def _counted(count: int, shape: list[int], where: str) -> None:
    if count != math.prod(shape):
        raise Refused(f"{where}: {count} elements, but its shape {shape} holds {math.prod(shape)}")


def _encoded(value: str, where: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{where}.data: text that is not UTF-8") from None


def _add(inputs: dict[str, Tensor], tensor: Tensor, where: str) -> None:
    if tensor.name in inputs:
        raise Refused(f"{where}: a second input called {tensor.name[:40]!r}")
    inputs[tensor.name] = tensor


def _plain(parameters: Any) -> dict[str, Any]:
    """Parameters as they are; gRPC's are messages with one field set."""
    return {
        key: getattr(value, value.WhichOneof("parameter_choice")) if hasattr(value, "WhichOneof") else value
        for key, value in dict(parameters or {}).items()
    }


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{where}: expected an object, got {_kind(value)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(f"{where}: expected a list, got {_kind(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{where}: expected text, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
