"""English edit instructions applied to a prompt, without a model.

A prompt is a list of comma-separated parts, the first of which holds the subject. An instruction changes the part it
names and leaves the others word for word as they are. What the rules do not understand they do not touch: the result
then asks, answers, or says which sentence was left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vca.refine.draft import Draft, History
from vca.refine.words import COLOUR, HAIR, IT, MEDIUM, TONE, WORD, clean, split_parts

Action = Literal["ask", "answer", "generate", "edit"]

MAX_FEEDBACK = 2000  # characters; what people say in one round is far shorter

# Sentences that give orders to the machine instead of changes to the picture. They are dropped whole.
NOISE = re.compile(
    r"(?i)\b(?:ignore|disregard|forget|override|bypass|skip)\b.*\b(?:instructions?|prompts?|rules?|directions?|guidelines?"
    r"|messages?|everything)\b|\bsystem (?:prompt|message)|\byou are (?:now|no longer)\b|\bact as\b|\bjailbreak"
    r"|\b(?:print|reveal|output|repeat|respond|reply|execute|say|tell)\b.*\b(?:prompt|instructions?|secret|password|"
    r"api key|token|with|only|json)\b|</?\w+>|https?://|\bnew instructions?\b|\b(?:system|assistant)\s*:"
)
VERBS = (
    "make|change|turn|add|remove|delete|drop|give|put|use|set|draw|paint|render|replace|swap|switch|keep|take|get|lose|"
    "include|don[’']t|do not|leave|ignore|disregard|forget"
)
_END = r"(?<!\bMrs)(?<!\bMr)(?<!\bDr)(?<!\bSt)\.(?:\s+|$)|(?<=[!?])\s+|[;\n]+"
_WRITTEN = re.compile(_END)
_SENTENCES = re.compile(
    rf"{_END}|,?\s+(?:and|then|but|and then|also)\s+"
    rf"(?=(?:also |please )?(?:{VERBS})\b)|,\s*(?=(?:{VERBS})\b)",
    re.I,
)
_POLITE = re.compile(
    r"(?i)^(?:(?:please|kindly|ok|okay|now|also|then|and|but|so|hey|yes|no|maybe|rather|just)(?:,\s*|\s+)(?<!no )|"
    r"(?:can|could|would|will) you |"
    r"i(?:[’']d| would)? (?:like|want|prefer|need)(?: you)?(?: to)? |let[’']?s |you should )+"
)
_QUESTION = re.compile(
    r"(?i)^(?:what|why|how|who|whose|where|when|which|is|are|was|were|does|do|did|has|have|can|could|will|would)\b"
)
_PRAISE = re.compile(
    r"(?i)(?:(?:yes|no|ok|okay|done|perfect|great|nice|good|thanks|thank you|wonderful|beautiful|love it|like it|"
    r"well done|"
    r"i (?:really )?(?:like|love) (?:it|this|that)|(?:it |that |this )?looks (?:good|great|perfect|nice)|"
    r"(?:that|it|this)(?:[’']s| is) (?:good|great|perfect|nice|it|fine)|so much|very much|job|work)[\s,!.]*)+"
)


@dataclass(frozen=True)
class RulesResult:
    """understood: every sentence of the feedback was an instruction, question or remark that the rules know."""

    prompt: str
    action: Action
    notice: str | None
    understood: bool


def refine_rules(*, prompt: str, feedback: str, history: History = ()) -> RulesResult:
    """The next prompt by rules alone. Instructions are applied in the order they are said."""
    draft = Draft(split_parts(prompt), history)
    said = clean(feedback)[:MAX_FEEDBACK]
    if not said:
        if draft.parts:
            return RulesResult(draft.text, "generate", None, True)
        return RulesResult("", "ask", "What should the picture show?", True)
    sentences = useful_sentences(said)
    if not sentences:
        question = "The feedback gives orders to the program, not changes to the picture: what should be different?"
        return RulesResult(draft.text, "ask", question, False)
    if not draft.parts:
        if any(_QUESTION.match(s) or _PRAISE.fullmatch(s) for s in sentences):
            return RulesResult("", "ask", "There is no picture yet: what should it show?", True)
        return RulesResult(", ".join(split_parts(" ".join(sentences))), "generate", None, True)
    done: set[Action] = set()
    unknown = [s for s in split_sentences(said) if s not in sentences]
    for sentence in sentences:
        action = _apply(draft, sentence)
        if action:
            done.add(action)
        else:
            unknown.append(sentence)
    understood = not unknown
    if done & {"edit", "generate"}:
        notice = f"Left out, not understood: {'; '.join(unknown)}" if unknown else None
        return RulesResult(draft.text, "generate" if "generate" in done else "edit", notice, understood)
    if "answer" in done:
        return RulesResult(draft.text, "answer", f"The picture was asked for as: {draft.text}", understood)
    notice = (
        draft.hint or f"Say what should be different, for example “make it blue”. Not understood: {'; '.join(unknown)}"
    )
    return RulesResult(draft.text, "ask", notice, not unknown)


def split_sentences(feedback: str) -> list[str]:
    return [s for s in (piece.strip(" ,.!\t") for piece in _SENTENCES.split(feedback)) if s]


def useful_sentences(feedback: str) -> list[str]:
    """The sentences about the picture. A sentence that holds an order to the program goes whole, and what it joins on.

    Sentences are judged as written, before instructions inside them are told apart: in "ignore all rules and make it
    a banana" the second half goes with the first.
    """
    written = _WRITTEN.split(feedback)
    return [s for sentence in written if not NOISE.search(sentence) for s in split_sentences(sentence)]


def _apply(draft: Draft, sentence: str) -> Action | None:
    """Do what one sentence says; None if the rules don't know it or it doesn't fit the prompt."""
    said = _POLITE.sub("", sentence).strip(" ,.!?")
    said = re.sub(r"(?i)[, ]+(?:please|thanks|thank you)$", "", said)
    said = re.sub(r"(?i)^(?:can|could|should|would|may) (.+?) be (?=.)", r"make \1 ", said)
    said = re.sub(r"(?i)^(it|they|the .+?) (?:should|must|needs? to|ha(?:s|ve) to|to) be (?=.)", r"make \1 ", said)
    said = re.sub(r"(?i)^make (?:they|he|she)\b", "make them", said)
    if _PRAISE.fullmatch(sentence):
        return "answer"
    for pattern, handler, action in CLAUSES:
        match = pattern.fullmatch(said)
        if match and handler(draft, match):
            return action
    question = sentence.endswith("?") or _QUESTION.match(sentence)
    return "answer" if question else None


def _keep(draft: Draft, m: re.Match[str]) -> bool:
    return True


def _make(draft: Draft, m: re.Match[str]) -> bool:
    """ "make NOUN VALUE": the noun is a slot, a word of the prompt, or new."""
    noun, value = m["noun"], m["value"]
    if noun.lower() in ("skin", "skin tone", "hair", "background", "style", "expression"):
        return draft.change(noun, value)
    return draft.describe(noun, value)


_SOMEONE = "(?:them|him|her|it|the (?:person|man|woman|subject))"
_GRAMMAR: tuple[tuple[str, Callable[[Draft, re.Match[str]], bool], Action], ...] = (
    (r"(?:keep|leave|preserve|(?:don[’']t|do not) (?:change|touch)) .+", _keep, "answer"),
    (
        r"(?:start (?:over|again)|forget (?:it|that|this)|(?:a )?new (?:picture|image|prompt)|from scratch)"
        r"(?:[ ,:;-]+(?:with |draw |make |show |paint )*(?P<x>.+))?",
        lambda d, m: d.start_over(m["x"]),
        "generate",
    ),
    (
        r"(?:undo|revert|go back|back)(?: .*)?|(?:the )?previous (?:one|version|picture|image)",
        lambda d, m: d.undo(),
        "edit",
    ),
    (r"(?:try |do it )?(?:once )?(?:again|more)|another (?:one|version|try)|regenerate|redo", _keep, "generate"),
    (
        rf"(?:(?:make|turn|have|let) )?(?:{IT} )?(?:to )?(?:fac(?:e|ing)|look(?:ing)?|point(?:ing)?) (?:to |towards )?"
        r"(?:the )?(?P<x>left|right|forward|backward|away|up|down|camera)",
        lambda d, m: d.set("direction", f"facing {'the ' * (m['x'].lower() == 'camera')}{m['x'].lower()}"),
        "edit",
    ),
    (
        rf"(?:(?:re)?draw|paint|render|make|show|do|use|put|give|have)?\s?(?:{IT})?\s?(?:in|with|using|to)?\s?"
        rf"(?:an? |the )?(?P<x>{WORD}(?: {WORD}){{0,2}}?) style(?: instead)?",
        lambda d, m: d.set("style", m["x"]),
        "edit",
    ),
    (
        rf"(?:(?:re)?draw|paint|render|make|show)?\s?(?:{IT})?\s?(?:as|in|like)? ?(?:an? )?(?P<x>{MEDIUM})",
        lambda d, m: d.set("style", m["x"]),
        "edit",
    ),
    (
        rf"(?:(?:make|give) )?(?:{_SOMEONE} )?(?:an? )?(?P<x>{TONE}) skin(?: tone)?",
        lambda d, m: d.change("skin", m["x"]),
        "edit",
    ),
    (
        rf"(?:(?:give|make) )?(?:{_SOMEONE} )?(?:an? )?(?P<x>{HAIR})",
        lambda d, m: d.set("hair", m["x"].lower()),
        "edit",
    ),
    (
        r"(?:change|set|switch|turn|replace|swap|transform|convert) (?P<old>.+?) (?:in)?(?:to|with|by|for) (?P<new>.+)",
        lambda d, m: d.change(m["old"], m["new"]),
        "edit",
    ),
    (r"(?:make|turn) (?:them|him|her) (?:into )?(?P<x>an? .+)", lambda d, m: d.become(m["x"], person=True), "edit"),
    (
        r"(?:make|turn|paint|colou?r) (?:the|its|their|his|her) (?P<noun>.+) (?P<value>(?:very |more |less )?\S+)",
        _make,
        "edit",
    ),
    (
        r"(?:make|paint|turn|colou?r) (?:it|this|that|the picture|the image) (?P<x>.+)",
        lambda d, m: d.become(m["x"], person=False),
        "edit",
    ),
    (r"(?:make|turn) (?:them|him|her) (?:into )?(?P<x>.+)", lambda d, m: d.become(m["x"], person=True), "edit"),
    (r"(?P<new>.+) instead of (?P<old>.+)", lambda d, m: d.swap(m["old"], m["new"]), "edit"),
    (
        r"(?:remove|delete|drop|lose|erase|get rid of|take (?:away|out|off)|without|no(?: more)?|"
        r"i don[’']t want) (?P<x>.+)",
        lambda d, m: d.remove(m["x"]),
        "edit",
    ),
    (
        rf"(?:add|include|put|insert|give {_SOMEONE}|i want|there should be) (?P<x>.+?)"
        r"(?: (?:to|in|on|into) (?:it|them|him|her|the (?:picture|image|scene)))?",
        lambda d, m: d.slot_word(m["x"]) or d.add(m["x"]),
        "edit",
    ),
    (
        r"(?:(?:it(?:[’']s| is| looks)|that(?:[’']s| is)) )?(?:way |a bit |much )?"
        r"(?:not (?:so|too|as|that)|too|less) (?P<x>\w+)",
        lambda d, m: d.opposite(m["x"]),
        "edit",
    ),
    (
        r"(?P<x>(?:more|with|in|at|on|under|near|behind|beside|next to|inside|wearing|holding) .+)",
        lambda d, m: d.add(m["x"]),
        "edit",
    ),
    (rf"(?P<x>{COLOUR})", lambda d, m: d.recolour(m["x"]), "edit"),
    (r"(?P<x>.+)", lambda d, m: d.slot_word(m["x"]), "edit"),
)
CLAUSES = tuple((re.compile(pattern, re.I), handler, action) for pattern, handler, action in _GRAMMAR)
