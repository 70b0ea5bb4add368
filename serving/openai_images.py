"""OpenAI's image API in front of the generator: generations, edits, streaming with previews, models.

https://platform.openai.com/docs/api-reference/images. What goes beyond it (seed, steps, guidance, strength, dialogue,
round …) is sent as further fields, which OpenAI's SDKs do with `extra_body`.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile

from serving.drawing import Pixels
from serving.generator import Generator, Result
from serving.model import RELEASE, Call
from serving.order import Order
from serving.pictures import FORMATS, encode, picture_bytes
from serving.refusal import Refused

# Fields of OpenAI's API that say how pictures travel or whom they are for, and which values mean something here.
ALLOWED: dict[str, tuple[Any, ...] | None] = {
    "model": None,
    "user": None,
    "size": None,
    "response_format": ("b64_json",),
    "output_format": tuple(FORMATS),
    "output_compression": None,
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "input_fidelity": ("low",),
    "style": None,
    "stream": None,
    "partial_images": (0, 1, 2, 3),
}
_NUMBERS: dict[str, type[int] | type[float]] = {
    "n": int,
    "seed": int,
    "steps": int,
    "round": int,
    "pick": int,
    "best_of": int,
    "partial_images": int,
    "output_compression": int,
}
_NUMBERS |= {"guidance": float, "strength": float}
_TRUTHS = {"true": True, "false": False}


class _Picture(BaseModel):
    model_config = ConfigDict(extra="forbid")

    b64_json: str
    revised_prompt: str
    seed: int
    score: float | None = None


class Images(BaseModel):
    """A finished answer. Everything from `request_id` on is ours."""

    model_config = ConfigDict(extra="forbid")

    created: int
    data: list[_Picture]
    output_format: str
    size: str
    quality: str = "auto"
    background: str = "opaque"
    request_id: str
    release: str
    dialogue_id: str = Field(description="send it with the next round")
    round: int
    notice: str | None = Field(None, description="a line for the person who asked")
    truncated: list[str] = Field([], description="words that the text encoder has no room for, left out")


class _Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """OpenAI's error object."""

    error: _Error


def routes(generator: Generator) -> Any:
    """Adds the routes to KServe's application."""

    def add(app: FastAPI) -> None:
        router = APIRouter(prefix="/openai/v1", tags=["OpenAI"])
        failures: dict[int | str, dict[str, Any]] = {
            status: {"model": Failure} for status in (400, 404, 413, 422, 429, 503)
        }
        for path, edits in (("/images/generations", False), ("/images/edits", True)):
            router.add_api_route(
                path,
                _endpoint(generator, edits=edits),
                methods=["POST"],
                response_model=Images,
                responses=failures,
                openapi_extra=_described(edits=edits),
                name="edits" if edits else "generations",
            )

        async def models() -> Any:
            return {"object": "list", "data": [_model(generator)]}

        async def model(name: str) -> Any:
            if name != generator.name:
                raise Refused(
                    f"model {name[:60]!r} is not served here; {generator.name} is", status=404, code="unknown_model"
                )
            return _model(generator)

        router.add_api_route("/models", models, methods=["GET"])
        router.add_api_route("/models/{name}", model, methods=["GET"], responses={404: {"model": Failure}})
        app.include_router(router)

    return add


def _model(generator: Generator) -> dict[str, Any]:
    return {"id": generator.name, "object": "model", "created": 0, "owned_by": "vca"}


def _endpoint(generator: Generator, *, edits: bool) -> Any:
    async def endpoint(request: Request) -> Response:
        if not generator.ready:
            raise Refused(f"{generator.name} is loading", status=503, code="not_ready", retry_after=5)
        call = Call.of(request.headers, settings=generator.settings)
        fields = await _fields(request)
        form = _form(fields, generator)
        order = Order.read(_order_of(fields, edits=edits), limits=generator.settings)
        if form.stream:
            if order.n != 1 or order.best_of:
                raise Refused("stream: one picture at a time; leave n and best_of out", param="stream")
            events = _events(generator, order, call, form, edits=edits)
            first = await anext(events)  # what is refused is refused with a status of its own
            return StreamingResponse(_after(first, events), media_type="text/event-stream", headers=_headers(call))
        result = await generator.timed("openai", call, generator.draw(order, call))
        body = await asyncio.to_thread(_images, generator, result, call, form)
        return Response(orjson.dumps(body), media_type="application/json", headers=_headers(call))

    return endpoint


class _Form(BaseModel):
    """How the caller wants the answer."""

    format: str = "png"
    quality: int = 100
    stream: bool = False
    previews: int = 0


async def _fields(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        try:
            return await _from_form(await request.form(max_files=4, max_fields=100))
        except Refused:
            raise
        except Exception as error:  # the parser's and starlette's errors have no common class
            raise Refused(f"the form can't be read: {getattr(error, 'detail', error)}"[:200]) from None
    if kind != "application/json":
        raise Refused(f"Content-Type {kind[:60]!r}: send application/json or multipart/form-data")
    try:
        document = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise Refused(f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refused(f"the body: expected an object, got {type(document).__name__}")
    return {name: value for name, value in document.items() if value is not None}


async def _from_form(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        name = name.removesuffix("[]")
        read: Any = await value.read() if isinstance(value, UploadFile) else value
        if name in fields:
            raise Refused(f"{name[:40]}: given twice; one is expected", param=name[:40])
        if isinstance(read, str) and name in _NUMBERS:
            try:
                read = _NUMBERS[name](read)
            except ValueError:
                raise Refused(f"{name} {read[:20]!r}: expected a number", param=name) from None
        elif isinstance(read, str) and name in ("stream", "refine"):
            read = _TRUTHS.get(read.lower(), read)
        fields[name] = read
    return fields


def _form(fields: Mapping[str, Any], generator: Generator) -> _Form:
    for name, allowed in ALLOWED.items():
        value = fields.get(name)
        if value is not None and allowed is not None and (value not in allowed or isinstance(value, bool)):
            raise Refused(f"{name} {str(value)[:40]!r}: allowed are {', '.join(map(str, allowed))}", param=name)
    side = generator.base.image_size
    if fields.get("size", "auto") not in ("auto", f"{side}x{side}"):
        raise Refused(f"size {str(fields['size'])[:20]!r}: this model draws {side}x{side} only", param="size")
    if fields.get("model", generator.name) != generator.name:
        raise Refused(
            f"model {str(fields['model'])[:60]!r} is not served here; {generator.name} is",
            status=404,
            code="unknown_model",
            param="model",
        )
    quality = fields.get("output_compression", 100)
    if type(quality) is not int or not 0 <= quality <= 100:
        raise Refused(f"output_compression {str(quality)[:20]}: 0 to 100", param="output_compression")
    stream = fields.get("stream", False)
    if not isinstance(stream, bool):
        raise Refused("stream: true or false", param="stream")
    previews = fields.get("partial_images", 0)
    return _Form(format=fields.get("output_format", "png"), quality=quality, stream=stream, previews=previews)


def _order_of(fields: Mapping[str, Any], *, edits: bool) -> dict[str, Any]:
    """The order's own fields, the picture decoded."""
    own = {name: value for name, value in fields.items() if name not in ALLOWED}
    if "mask" in own:
        raise Refused("mask: whole pictures are edited; leave it out", param="mask")
    if not edits and "image" in own:
        raise Refused("image: to go on from a picture, call /images/edits", param="image")
    if not edits and "dialogue_id" in own:
        raise Refused("dialogue_id: to go on with a dialogue, call /images/edits", param="dialogue_id")
    if edits and "image" not in own and "dialogue_id" not in own:
        raise Refused("image: send the picture to change, or the dialogue_id of its dialogue", param="image")
    if "image" in own:
        image = own["image"]
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        own["image"] = image if isinstance(image, bytes) else picture_bytes(image)
    for name in ("guidance", "strength"):
        if type(own.get(name)) is int:
            own[name] = float(own[name])
    return own


def _headers(call: Call) -> dict[str, str]:
    return {RELEASE: call.release}


def _images(generator: Generator, result: Result, call: Call, form: _Form) -> dict[str, Any]:
    side = generator.base.image_size
    return {
        "created": int(time.time()),
        "data": [
            {
                "b64_json": base64.b64encode(generator.finish(drawn.pixels, call, form.format, form.quality)).decode(),
                "revised_prompt": result.prompt,
                "seed": drawn.seed,
                "score": drawn.score,
            }
            for drawn in result.pictures
        ],
        "output_format": form.format,
        "size": f"{side}x{side}",
        "quality": "auto",
        "background": "opaque",
        "request_id": call.request_id,
        "release": result.release,
        "dialogue_id": result.dialogue_id,
        "round": result.round,
        "notice": result.notice,
        "truncated": list(result.cut),
    }


async def _events(generator: Generator, order: Order, call: Call, form: _Form, *, edits: bool) -> AsyncIterator[bytes]:
    """Server-sent events: previews as they come, then the picture. What fails before the first is raised."""
    kind = "image_edit" if edits else "image_generation"
    previews: asyncio.Queue[Pixels | None] = asyncio.Queue()
    call.release = generator.release_name
    drawing = asyncio.ensure_future(
        generator.timed(
            "openai", call, generator.draw(order, call, previews=form.previews, on_preview=previews.put_nowait)
        )
    )
    drawing.add_done_callback(lambda _: previews.put_nowait(None))
    try:
        number = 0
        while (pixels := await previews.get()) is not None:
            if not await asyncio.to_thread(generator.may_show, pixels):
                continue
            data = await asyncio.to_thread(encode, pixels, form.format, form.quality)
            event = _event(f"{kind}.partial_image", data, generator, form)
            yield _line({**event, "partial_image_index": number})
            number += 1
        result = await drawing
        done = await asyncio.to_thread(_images, generator, result, call, form)
        picture = done.pop("data")[0]
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        usage_details = {"image_tokens": 0, "text_tokens": 0}
        yield _line(
            {
                "type": f"{kind}.completed",
                **picture,
                **done,
                "created_at": done["created"],
                "usage": {**usage, "input_tokens_details": usage_details},
            }
        )
    finally:
        drawing.cancel()


def _event(kind: str, data: bytes, generator: Generator, form: _Form) -> dict[str, Any]:
    side = generator.base.image_size
    return {
        "type": kind,
        "b64_json": base64.b64encode(data).decode(),
        "created_at": int(time.time()),
        "output_format": form.format,
        "size": f"{side}x{side}",
        "quality": "auto",
        "background": "opaque",
    }


def _line(event: Mapping[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event) + b"\n\n"


async def _after(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The whole stream. The status is out by now: what fails is told as an event of OpenAI's error shape."""
    yield first
    try:
        async for event in events:
            yield event
    except Refused as refusal:
        yield _line({"type": "error", **refusal.body(openai=True)})


def _described(*, edits: bool) -> dict[str, Any]:
    """The request, for the OpenAPI document."""
    schema = Order.model_json_schema()
    for name, allowed in ALLOWED.items():
        schema["properties"][name] = {"enum": list(allowed)} if allowed else {}
    schema["properties"]["image"] = {"type": "string", "description": "base64 or a data URL"}
    if not edits:
        del schema["properties"]["image"]
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
