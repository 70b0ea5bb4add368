"""What a caller may ask the generator for, checked once for every protocol."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.refusal import Refused
from vca.service import ServingSettings

SEEDS = 2**53  # a JSON number keeps every one of them exactly


class Order(BaseModel):
    """A request for pictures. What is None falls back to the server's settings.

    prompt: what to draw, or, in a later round, what to change. dialogue_id and round: go on with a dialogue of this
    server, from picture `pick` of the round before; image: go on from a picture that is sent along, drawn as
    `previous_prompt`, with what was said since the beginning in `history`. best_of: draw so many, give the n best.
    seed: of the first picture; the others count on from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(min_length=1)
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=1, allow_inf_nan=False)
    strength: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    refine: bool = True
    best_of: int | None = Field(None, ge=1)
    dialogue_id: str | None = Field(None, max_length=100)
    round: int | None = Field(None, ge=1, le=10_000)
    pick: int = Field(0, ge=0)
    previous_prompt: str | None = Field(None, min_length=1)
    history: list[str] = Field([], max_length=100)
    image: bytes | None = Field(None, repr=False)

    @classmethod
    def read(cls, fields: Mapping[str, Any], *, limits: ServingSettings) -> Self:
        """Raises Refused with the field, what was given and what is allowed."""
        try:
            order = cls.model_validate(dict(fields))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            given = "" if first["type"] in ("missing", "extra_forbidden") else f" (given: {_short(first['input'])})"
            raise Refused(f"{name}: {first['msg']}{given}", param=name) from None
        order._within(limits)
        return order

    def _within(self, limits: ServingSettings) -> None:
        for name, value, most in (
            ("n", self.n, limits.max_pictures),
            ("best_of", self.best_of, limits.max_pictures),
            ("steps", self.steps, limits.max_steps),
            ("guidance", self.guidance, limits.max_guidance),
        ):
            if value is not None and value > most:
                raise Refused(f"{name} {value}: at most {most} are allowed", param=name)
        for name, text in [("prompt", self.prompt), ("previous_prompt", self.previous_prompt or "")] + [
            ("history", said) for said in self.history
        ]:
            if len(text) > limits.max_prompt:
                raise Refused(f"{name}: {len(text)} characters, at most {limits.max_prompt} are allowed", param=name)
            if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
                raise Refused(f"{name}: half a surrogate pair is no text", param=name)
        if not self.prompt.strip():
            raise Refused("prompt: say what to draw", param="prompt")
        if self.best_of is not None and self.best_of < self.n:
            raise Refused(f"best_of {self.best_of} is below n {self.n}", param="best_of")
        if self.image is not None and self.dialogue_id is not None:
            raise Refused("give image or dialogue_id, not both: each says what to go on from", param="image")
        if self.image is None and self.previous_prompt is not None:
            raise Refused("previous_prompt belongs to an image that is sent along", param="previous_prompt")
        if self.dialogue_id is None and (self.round or 1) > 1:
            raise Refused("round: later rounds need their dialogue_id", param="round")

    @property
    def edits(self) -> bool:
        """Whether this goes on from a picture."""
        return self.image is not None or self.dialogue_id is not None

    @property
    def drawn(self) -> int:
        """Pictures to draw."""
        return max(self.n, self.best_of or 0)

    def first_seed(self) -> int:
        return secrets.randbelow(SEEDS - 1000) if self.seed is None else self.seed


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
