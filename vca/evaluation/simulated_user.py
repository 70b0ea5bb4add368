"""A person with a picture in mind: looks, accepts, or says what is missing, and gives up after enough rounds.

"Rounds to satisfaction" is the number of rounds until the person accepts; a person who gives up counts with the
cap. The person asks the independent judges, never the reward model. B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vca.diffusion.dialogues import strength
from vca.diffusion.sampler import Samples
from vca.evaluation.settings import EvaluationSettings
from vca.records import Dialogue
from vca.refine.rules import refine_rules

TRY_AGAIN = "try again"


class Paint(Protocol):
    """As `Painter.paint`."""

    def __call__(
        self,
        *,
        prompts: Sequence[str],
        keys: Sequence[str],
        previous_BCHW: Tensor | None = None,
        strengths: Sequence[float | None] | None = None,
    ) -> Samples: ...


# (intents, images_BCHW) -> content score and judged drawing style of each picture
Appraise = Callable[[list[str], Tensor], tuple[list[float], list[str]]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One round: the words before it, the prompt they led to, the picture, and what the judges say of it."""

    feedback: str
    prompt: str
    image_CHW: Tensor = field(repr=False)
    content: float
    style: str


@dataclass(kw_only=True)
class Session:
    """A person's way with one policy. `said` counts the dialogue's turns spoken so far, the first prompt included."""

    dialogue: Dialogue
    wanted_style: str | None
    shown: list[Shown] = field(default_factory=list)
    said: int = 1
    satisfied: bool = False

    def rounds(self, *, cap: int) -> int:
        """Rounds to satisfaction, or the cap for a person who gave up."""
        return len(self.shown) if self.satisfied else cap


def react(session: Session, *, threshold: float) -> str | None:
    """None if the person accepts the last picture, else what they say next.

    They accept when the content judge finds the whole intent in it and it is drawn as they like. Otherwise they name
    what they see missing: the next edit they had in mind, else the drawing style, else they ask for another try.
    """
    last = session.shown[-1]
    content = last.content >= threshold
    style = session.wanted_style is None or last.style == session.wanted_style
    if content and style:
        return None
    if not content and session.said < len(session.dialogue.turns):
        session.said += 1
        return session.dialogue.turns[session.said - 1].feedback
    words = f"draw it in {session.wanted_style} style"
    return TRY_AGAIN if style or any(shown.feedback == words for shown in session.shown) else words


def lead(
    dialogues: Sequence[Dialogue],
    *,
    paint: Paint,
    appraise: Appraise,
    threshold: float,
    config: EvaluationSettings,
    on_round: Callable[[int], None] = lambda pictures: None,
) -> list[Session]:
    """All dialogues side by side, round by round, each until its person accepts or gives up.

    Words go through the refinement rules; an edit re-draws part of the last picture (SDEdit), "try again" starts anew.
    """
    sessions = [Session(dialogue=d, wanted_style=d.style or config.taste) for d in dialogues]
    words, prompts = [""] * len(sessions), [d.initial_prompt for d in dialogues]
    strengths: list[float | None] = [None] * len(sessions)
    latents: list[Tensor] = [torch.empty(0)] * len(sessions)
    active = list(range(len(sessions)))
    for number in range(1, config.max_rounds + 1):
        drawn = paint(
            prompts=[prompts[at] for at in active],
            keys=[f"{dialogues[at].dialogue_id} round {number}" for at in active],
            previous_BCHW=torch.stack([latents[at] for at in active]) if number > 1 else None,
            strengths=[strengths[at] for at in active],
        )
        content, styles = appraise([dialogues[at].intent for at in active], drawn.images_BCHW)
        going = []
        for row, at in enumerate(active):
            session = sessions[at]
            session.shown.append(
                Shown(
                    feedback=words[at],
                    prompt=prompts[at],
                    image_CHW=drawn.images_BCHW[row],
                    content=content[row],
                    style=styles[row],
                )
            )
            latents[at] = drawn.latents_BCHW[row]
            said = react(session, threshold=threshold)
            if said is None:
                session.satisfied = True
                continue
            going.append(at)
            history = [(shown.feedback, shown.prompt) for shown in session.shown]
            refined = refine_rules(prompt=prompts[at], feedback=said, history=history)
            words[at], prompts[at] = said, refined.prompt
            edit = refined.action == "edit"
            strengths[at] = redraw(dialogues[at].dialogue_id, number + 1, config=config) if edit else None
        on_round(len(active))
        active = going
        if not active:
            break
    return sessions


def redraw(dialogue_id: str, number: int, *, config: EvaluationSettings) -> float:
    """Share of the picture that round `number` ≥ 2 draws again, as in training."""
    return strength(
        dialogue_id,
        number,
        low=config.strength_low,
        high=config.strength_high,
        decay=config.strength_decay,
        floor=config.strength_floor,
        seed=config.seed,
    )
