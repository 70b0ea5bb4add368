"""What the generator would make of feedback, before anything is drawn: a studio shows it, and people may edit it.

POST /vca/v1/refinements {"prompt", "feedback", "history": [[feedback, prompt], ...]}
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.generator import Generator
from serving.refusal import Refused
from vca.refine.refiner import Refinement


class Feedback(BaseModel):
    """feedback: empty in round 1, where the answer only tells what has no room. history: oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1)
    feedback: str = ""
    history: list[tuple[str, str]] = Field([], max_length=100)


def routes(generator: Generator) -> Any:
    """Adds the route to KServe's application."""

    def add(app: FastAPI) -> None:
        router = APIRouter(prefix="/vca/v1", tags=["Refinement"])

        async def refine(request: Request) -> Refinement:
            if not generator.ready:
                raise Refused(f"{generator.name} is loading", status=503, code="not_ready", retry_after=5)
            asked = _read(await request.body(), most=generator.settings.max_prompt)
            return await asyncio.to_thread(
                generator.refiner.refine, prompt=asked.prompt, feedback=asked.feedback, history=asked.history
            )

        router.add_api_route(
            "/refinements",
            refine,
            methods=["POST"],
            response_model=Refinement,
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": Feedback.model_json_schema()}},
                }
            },
        )
        app.include_router(router)

    return add


def _read(body: bytes, *, most: int) -> Feedback:
    try:
        asked = Feedback.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise Refused(f"{name or 'the body'}: {first['msg']}", param=name or None) from None
    for name, text in [("prompt", asked.prompt), ("feedback", asked.feedback)] + [
        ("history", text) for turn in asked.history for text in turn
    ]:
        if len(text) > most:
            raise Refused(f"{name}: {len(text)} characters, at most {most} are allowed", param=name)
    if not asked.prompt.strip():
        raise Refused("prompt: say what was drawn", param="prompt")
    return asked
