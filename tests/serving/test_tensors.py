"""Tensors of the V2 protocol: what goes in comes out, and what is malformed is refused with a reason."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving.refusal import Refused
from serving.tensors import DTYPES, HEADER_LENGTH, Request, Tensor, bytes_array, from_grpc, from_rest, raw_of, to_rest

# Drawing arrays is slow at first, on a busy machine too slow for the library's liking.
slowly = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(hnp.array_shapes(max_dims=3, max_side=4))
    if datatype == "BYTES":
        size = int(np.prod(shape))
        values = bytes_array(draw(st.lists(st.binary(max_size=20), min_size=size, max_size=size)), shape=shape)
    else:
        finite = {"allow_nan": False, "allow_infinity": False} if "FP" in datatype else {}
        values = draw(
            hnp.arrays(DTYPES[datatype], shape, elements=hnp.from_dtype(np.dtype(DTYPES[datatype]), **finite))
        )
    return Tensor(name=draw(st.text(min_size=1, max_size=5)), datatype=datatype, values=values)


def same(one: Tensor, other: Tensor) -> bool:
    return (one.name, one.datatype, one.shape) == (other.name, other.datatype, other.shape) and bool(
        np.array_equal(one.values, other.values)
    )


def binary_body(given: list[Tensor]) -> tuple[bytes, str]:
    heads = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": len(raw_of(tensor))},
        }
        for tensor in given
    ]
    head = orjson.dumps({"inputs": heads})
    return b"".join([head, *map(raw_of, given)]), str(len(head))


@slowly
@given(given=st.lists(tensors(), max_size=3, unique_by=lambda tensor: tensor.name))
def test_binary_data_over_rest_arrives_untouched(given: list[Tensor]) -> None:
    body, length = binary_body(given)
    found = from_rest(body, header_length=length)
    assert all(same(found.inputs[tensor.name], tensor) for tensor in given)


@slowly
@given(tensor=tensors())
def test_what_is_written_as_json_is_read_back(tensor: Tensor) -> None:
    if tensor.datatype == "BYTES":
        tensor = Tensor(
            name=tensor.name,
            datatype="BYTES",
            values=bytes_array([e.hex().encode() for e in tensor.values.reshape(-1)], shape=tensor.shape),
        )
    body, headers = to_rest([tensor], request=Request(inputs={}), head={"model_name": "m"}, as_text={})
    assert headers == {"content-type": "application/json"}
    document = orjson.loads(body)
    document["inputs"] = document.pop("outputs")
    assert same(from_rest(orjson.dumps(document), header_length=None).inputs[tensor.name], tensor)


@slowly
@given(given=st.lists(tensors(), min_size=1, max_size=3, unique_by=lambda tensor: tensor.name))
def test_an_output_asked_for_as_binary_data_comes_as_such(given: list[Tensor]) -> None:
    request = Request(inputs={}, binary=True)
    body, headers = to_rest(given, request=request, head={"model_name": "m"}, as_text={})
    length = headers[HEADER_LENGTH]
    document = orjson.loads(body[: int(length)])
    document["inputs"] = document.pop("outputs")
    head = orjson.dumps(document)
    again = from_rest(head + body[int(length) :], header_length=str(len(head)))
    assert all(same(again.inputs[tensor.name], tensor) for tensor in given)


def test_only_the_outputs_that_are_asked_for_come() -> None:
    one, two = (Tensor(name=name, datatype="FP32", values=np.ones(2, np.float32)) for name in ("one", "two"))
    body, _ = to_rest([one, two], request=Request(inputs={}, outputs={"two": False}), head={}, as_text={})
    assert [entry["name"] for entry in orjson.loads(body)["outputs"]] == ["two"]
    with pytest.raises(Refused, match="unknown output 'three'; there are one, two"):
        to_rest([one, two], request=Request(inputs={}, outputs={"three": False}), head={}, as_text={})


def test_grpc_contents_raw_or_typed() -> None:
    def request(**tensor: Any) -> Any:
        entry = SimpleNamespace(
            **{"name": "x", "datatype": "BYTES", "shape": [2], "data": None, "_raw_data": None} | tensor
        )
        return SimpleNamespace(inputs=[entry], id="7", request_outputs=None, parameters=None)

    raw = raw_of(Tensor(name="x", datatype="BYTES", values=bytes_array([b"\x89PNG\x00", b""])))
    for found in (from_grpc(request(_raw_data=raw)), from_grpc(request(data=[b"\x89PNG\x00", b""]))):
        assert found.id == "7"
        assert list(found.inputs["x"].values) == [b"\x89PNG\x00", b""]


def entry(**changed: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]} | changed]}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "the body: expected an object, got list"),
        ({}, "inputs: expected a list, got nothing"),
        ({"inputs": ["x"]}, r"inputs\[0\]: expected an object, got str"),
        (entry(name=None), r"inputs\[0\].name: expected text, got nothing"),
        (entry(datatype="INT31"), "datatype 'INT31': allowed are BOOL"),
        (entry(shape=[-1]), "shape: give at most 8 whole numbers"),
        (entry(shape=[2.0]), "shape: give at most 8 whole numbers"),
        (entry(shape=[3]), r"2 elements, but its shape \[3\] holds 3"),
        (entry(data=[1, 1.5]), "elements of INT32 are whole numbers"),
        (entry(data=[1, True]), "elements of INT32 are whole numbers"),
        (entry(data=[1, 2**40]), "too large for INT32"),
        (entry(data={}), "data: expected a list, got dict"),
        (entry(datatype="BYTES"), "elements of BYTES are strings"),
        (entry(datatype="BOOL"), "elements of BOOL are true or false"),
        (entry(parameters={"binary_data_size": 9}), "binary_data_size 9, but 0 bytes are left"),
        ({"inputs": [*entry()["inputs"], *entry()["inputs"]]}, "a second input called 'x'"),
        (entry() | {"parameters": 3}, "parameters: expected an object, got int"),
        (entry() | {"id": 3}, "id: expected text, got int"),
        (entry() | {"outputs": [{}]}, r"outputs\[0\].name: expected text, got nothing"),
    ],
)
def test_what_is_malformed_is_refused_with_a_reason(document: Any, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        from_rest(orjson.dumps(document), header_length=None)


@pytest.mark.parametrize("length", ["-1", "999", "1e3", "٣", ""])
def test_a_header_length_that_cannot_be_is_refused(length: str) -> None:
    with pytest.raises(Refused, match="Inference-Header-Content-Length"):
        from_rest(b"{}", header_length=length)


@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 200).map(str))
def test_any_bytes_are_read_or_refused(body: bytes, length: str | None) -> None:
    with suppress(Refused):
        from_rest(body, header_length=length)


@given(raw=st.binary(max_size=60), datatype=st.sampled_from(sorted(DTYPES)), side=st.integers(0, 9))
def test_any_binary_data_is_read_or_refused(raw: bytes, datatype: str, side: int) -> None:
    head = orjson.dumps(entry(datatype=datatype, shape=[side], data=None, parameters={"binary_data_size": len(raw)}))
    with suppress(Refused):
        found = from_rest(head + raw, header_length=str(len(head)))
        assert raw_of(found.inputs["x"]) == raw or datatype == "BOOL"


def test_deep_nesting_is_no_stack_overflow() -> None:
    deep = b"[" * 500 + b"1" + b"]" * 500
    body = b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1],"data":' + deep + b"}]}"
    assert from_rest(body, header_length=None).inputs["x"].values.tolist() == [1]
