"""Asks the generator what it would make of feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from serving.refusal import Refused


async def refine(
    generator: httpx.AsyncClient,
    *,
    prompt: str,
    feedback: str,
    history: Sequence[tuple[str, str]],
    patient: bool,
) -> dict[str, Any] | None:
    """A `vca.refine.refiner.Refinement` as JSON. patient: raise Refused where the generator is away; else None."""
    body = {"prompt": prompt, "feedback": feedback, "history": [list(turn) for turn in history[-100:]]}
    try:
        response = await generator.post("/vca/v1/refinements", json=body)
        if response.status_code == 200:
            found: dict[str, Any] = response.json()
            return found
        problem = f"{response.status_code}"
        if response.status_code < 500:
            raise Refused(str(response.json().get("error", "not understood")), status=422)
    except (httpx.HTTPError, ValueError) as error:
        problem = type(error).__name__
    if not patient:
        return None
    raise Refused(
        f"the picture maker does not answer ({problem}); nothing is lost, try again in a moment",
        status=503,
        code="no_generator",
        retry_after=3,
    )
