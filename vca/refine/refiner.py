"""Prompt refinement (paper, eq. 1): P_k = G(F_LLM(prompt + feedback), P_{k-1}), as one checked call.

Whatever the back end, the result is the same for the same words, keeps what the feedback does not name, and fits the
text encoder. Round 1 has no feedback and ignores any history.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vca.refine.chat import Answer, Chat, ChatError
from vca.refine.draft import History
from vca.refine.rules import MAX_FEEDBACK, Action, RulesResult, refine_rules, useful_sentences
from vca.refine.settings import RefineSettings
from vca.refine.words import SLOTS, attributes, clean, split_parts

CountTokens = Callable[[str], int]

# What a model may bring in that neither prompt nor feedback says ("dramatic" -> "storm clouds, low sun"), in words.
_MAX_NEW_WORDS = 8
_SUBJECT_WORDS = 8  # of an overlong subject, these go last
_UNSAFE = re.compile(r"[<>{}\[\]\\`|]|https?://|www\.|\bas an ai\b|system prompt", re.I)


class Refinement(BaseModel):
    """The next prompt and how it came about.

    kept, changed: attributes, "+" before what is new and "-" before what is gone. truncated: what had to go so that the
    prompt fits the text encoder. backend: who made it in the end. notice: one line for the person: a question (action
    "ask"), an answer, or what went wrong on the way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    refined_prompt: str
    kept: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    action: Action
    truncated: tuple[str, ...] = ()
    backend: Literal["rules", "endpoint", "transformers"]
    notice: str | None = Field(None)


def token_counter(tokenizer: Any) -> CountTokens:
    """Counts tokens as the text encoder sees them, start and end included. `tokenizer`: a transformers tokenizer."""
    return lambda text: len(tokenizer(text, truncation=False, verbose=False)["input_ids"])


class Refiner:
    """Refines prompts with the back end that the settings name. Safe to use from several threads."""

    def __init__(self, *, settings: RefineSettings, count_tokens: CountTokens) -> None:
        """`count_tokens`: see `token_counter`. Raises SettingsError or ArtifactError if the back end can't be had."""
        self._settings = settings
        self._count_tokens = count_tokens
        self._chat = None if settings.backend == "rules" else Chat(settings)

    def refine(self, *, prompt: str, feedback: str, history: History = ()) -> Refinement:
        """The prompt of the next round.

        prompt: the prompt of this round, P_{k-1}. feedback: what the person says about its picture; empty in round 1.
        history: (feedback, refined prompt) of the earlier rounds, oldest first.
        """
        before, cut_before = fit(split_parts(prompt), (), self._settings.max_tokens, self._count_tokens)
        previous = ", ".join(before)
        rules = refine_rules(prompt=previous, feedback=feedback, history=history)
        text, action, notice = rules.prompt, rules.action, rules.notice
        backend: Literal["rules", "endpoint", "transformers"] = "rules"
        said = "\n".join(useful_sentences(clean(feedback)[:MAX_FEEDBACK]))
        if self._chat and said:
            try:
                answer = self._chat.answer(prompt=previous, feedback=said, history=history)
                check(answer, previous=previous, feedback=said, rules=rules)
            except ChatError as error:
                reason = f"{self._settings.backend} not used: {error}; the rules answered"
                notice = f"{notice} ({reason})" if notice else reason
            else:
                backend, action = self._settings.backend, answer.action
                text = answer.refined_prompt if action in ("edit", "generate") else previous
                asks = {"ask": "Say what should be different.", "answer": f"The picture was asked for as: {previous}"}
                notice = asks.get(action)
        new = split_parts(text)
        known = {part.lower() for part in before}
        fresh = [part for part in new if part.lower() not in known]
        after, cut = fit(new, fresh, self._settings.max_tokens, self._count_tokens)
        old_attributes, new_attributes = Counter(attributes(previous)), Counter(attributes(", ".join(after)))
        return Refinement(
            refined_prompt=", ".join(after),
            kept=tuple((old_attributes & new_attributes).elements()),
            changed=(
                *(f"-{a}" for a in (old_attributes - new_attributes).elements()),
                *(f"+{a}" for a in (new_attributes - old_attributes).elements()),
            ),
            action=action,
            truncated=(*cut_before, *cut),
            backend=backend,
            notice=notice,
        )


def check(answer: Answer, *, previous: str, feedback: str, rules: RulesResult) -> None:
    """Raise ChatError unless the model's answer keeps what it must and looks like a prompt.

    An attribute may go if the feedback names it, or if the rules' reading of the feedback takes it away; where the
    rules could not read all of the feedback, also if the feedback speaks of its kind ("lighter hair" for "red hair").
    """
    if answer.action in ("ask", "answer"):
        return
    text = answer.refined_prompt
    if _UNSAFE.search(text) or not split_parts(text):
        raise ChatError("its answer is not a prompt")
    named = _stems(feedback)
    old, new = Counter(attributes(previous)), Counter(attributes(text))
    excused = Counter(attributes(previous)) - Counter(attributes(rules.prompt))
    lost = [
        attribute
        for attribute in old - new
        if attribute not in excused
        and not _stems(attribute) & named
        and (rules.understood or not _kind(attribute) & _kinds(feedback))
    ]
    if lost and rules.action != "generate":
        raise ChatError(f"its answer drops {', '.join(lost)}, which the feedback does not name")
    if rules.understood and rules.prompt != previous and split_parts(text) == split_parts(previous):
        raise ChatError("its answer changes nothing")
    invented = _stems(text) - _stems(previous) - named
    if len(invented) > _MAX_NEW_WORDS:
        raise ChatError(f"its answer brings in {len(invented)} words that nobody said")


def _stems(text: str) -> set[str]:
    """Words without the endings that change; slot words ("skin", "style") say nothing by themselves."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {re.sub(r"(?:es|s|er|ish)$", "", w) if len(w) > 4 else w for w in words} - {
        "skin",
        "hair",
        "style",
        "facing",
    }


def _kind(attribute: str) -> set[str]:
    return {name for name, slot in SLOTS.items() if slot.found.fullmatch(attribute)}


def _kinds(feedback: str) -> set[str]:
    return {name for name in SLOTS if name in feedback.lower()}


def fit(
    parts: Sequence[str], fresh: Sequence[str], limit: int, count_tokens: CountTokens
) -> tuple[list[str], tuple[str, ...]]:
    """`parts` cut down to `limit` tokens, and what was cut.

    What the person said last must not be lost, nor the subject. So whole parts go first, from the end, but not the
    subject and none of `fresh` (new in this round); then the end of an overlong subject, down to eight words; then
    words of the fresh parts from the end; last, what is left of the subject, at worst letter by letter.
    """
    if count_tokens(", ".join(parts)) <= limit:
        return list(parts), ()
    words = [part.split() for part in parts]
    old = [i for i in range(len(parts) - 1, 0, -1) if parts[i] not in fresh]
    steps = [(i, 0) for i in old]
    steps += [(0, n) for n in range(len(words[0]) - 1, _SUBJECT_WORDS - 1, -1)]
    steps += [(i, n) for i in range(len(parts) - 1, 0, -1) if i not in old for n in range(len(words[i]) - 1, -1, -1)]
    steps += [(0, n) for n in range(min(len(words[0]), _SUBJECT_WORDS) - 1, 0, -1)]

    def after(n: int) -> list[str]:
        left = dict(steps[:n])
        cut = (" ".join(w[: left.get(i, len(w))]) for i, w in enumerate(words))
        return [part for part in cut if part]

    def too_long(text: str) -> bool:
        return count_tokens(text) > limit

    n = bisect_left(range(len(steps)), True, key=lambda n: not too_long(", ".join(after(n))))
    result = after(n)
    if too_long(", ".join(result)):  # one endless word is left
        word = result[0]
        letters = bisect_left(range(len(word)), True, key=lambda k: too_long(word[: k + 1]))
        return [word[:letters]], (word[letters:],)
    left = dict(steps[:n])
    return result, tuple(" ".join(words[i][left[i] :]) for i in sorted(left))
