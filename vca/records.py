"""What flows between the stages. Plain frozen dataclasses: they know no file format and no framework.

Rounds start at 1. Pictures travel as their encoded bytes (PNG, JPEG or WebP), never as paths, so that a shard is
complete in itself and reads sequentially.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

Split = Literal["train", "test"]
Role = Literal["reward", "diffusion", "validation", "test", "unused"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One encoded image.

    data: encoded bytes. uri: where it was read from, for error messages and quarantine. key: the identity that must
    not straddle the train/test split (an item id, a concept; not the file's bytes).
    """

    data: bytes = field(repr=False)
    uri: str
    key: str

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One round of a dialogue: what the person said, the prompt that came of it, the picture they wanted.

    In round 1 `feedback` is empty and `refined_prompt` is the initial prompt. `operation` names the kind of edit
    ("initial" in round 1), `target` is the picture the edit should lead to, `image` what was shown, where known.
    """

    round: int
    feedback: str
    refined_prompt: str
    operation: str
    image: Picture | None = None
    target: Picture | None = None
    satisfied: bool | None = None
    input_modality: str = "text"
    output_modality: str = "image"


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A person's way to a picture, in rounds. `style` is None where the intent leaves the drawing style open."""

    dialogue_id: str
    source: str
    theme: str
    style: str | None
    initial_prompt: str
    intent: str
    turns: tuple[Turn, ...]
    split: Split = "train"
    role: Role = "unused"


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """For one prompt, `positive` was preferred to `negative` (label 1) or they tie (label 0.5).

    A source that labels the other way round (0) swaps the pictures on reading. `kind` is what the pair tests
    ("skin_tone", "random", "taste", ...) and `negative_kind` how the negative was made.
    """

    pair_id: str
    prompt: str
    positive: Picture
    negative: Picture
    source: str
    kind: str
    negative_kind: Literal["lower_score", "mismatch", "opposite_prompt", "edited_prompt", "human", "taste", "degraded"]
    label: float = 1.0
    label_confidence: float = 1.0
    dialogue_id: str | None = None
    split: Split = "train"
    role: Role = "reward"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage hands to the next: its folder, and the numbers worth logging."""

    output: Path
    metrics: dict[str, Any]
