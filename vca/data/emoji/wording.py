"""How a person asks for an edit, in words, and the articles that takes."""

from __future__ import annotations

import random
import re

from vca.data.emoji.catalogue import EmojiItem

# Ways to ask for each kind of edit, the plain one first; {target} comes with its article where it needs one.
_INSTEAD = (
    "make it {target} instead",
    "turn it into {target}",
    "change it to {target}",
    "can you make it {target} instead?",
)
PHRASES = {
    "skin_tone": ("make the skin {target}", "change the skin tone to {target}", "please make the skin {target}"),
    "role": ("make them {target}", "please make them {target}", "I’d like you to make them {target}"),
    "gender": ("make it {target}", "make them {target}", "please make it {target}"),
    "colour": ("make the {root} {target}", "make it {target}", "paint it {target}"),
    "style": ("draw it in {target} style", "change the style to {target}", "redraw it in {target} style, please"),
    "direction": ("turn it to face {target}",),
    "species": _INSTEAD,
    "expression": ("change the expression to {target}", "please change the expression to {target}"),
    "replacement": _INSTEAD,
}

_PREPOSITION = re.compile(r" (?:with|without|of|on|in|at|behind|over|showing|for) ")
_SOMEONE = re.compile(r"^(?:person|woman|man|girl|boy) ")
_PLURAL_S = re.compile(r"(?<![suo])s$")  # not glass, bus, rhinoceros
_PLURALS = {"people", "men", "women", "children"}
_NAME = re.compile(r"^(?:Santa|Mrs\.|Mx|mount |no |thumbs |palms |breast-|head shaking )|o’clock$|-thirty$")
# Heads that take no article: what can't be counted, adjectives, and names.
_BARE_HEADS = """
    bacon badminton blossom bowling bread broccoli butter camping clothing construction control cooking coral curling
    divide dna fire flatbread fog foggy food garlic hair hockey ice infinity information lacrosse lightning litter
    locked luggage meat milk minus money multiply oden plus polish pong popcorn prohibited racing radioactive rain
    registered rice sake salt snow soap softball spaghetti sushi tennis thread unlocked voltage water wireless wood yarn
    Aquarius Aries Cancer Capricorn Gemini Leo Libra Ophiuchus Pisces Sagittarius Scorpio Taurus Virgo
"""
_BARE = frozenset(_BARE_HEADS.split())
_THE = {"Statue of Liberty", "milky way", "Tokyo tower"}
_AN = re.compile(r"^(?:[aeiou]|hour|honest|heir|x-ray|SOS|NG )", re.I)
_A = re.compile(r"^(?:uni|use|uti|eu|ewe|one-|one )", re.I)


def with_article(phrase: str) -> str:
    """ "pilot" -> "a pilot", "astronaut" -> "an astronaut", "peanuts" -> "peanuts", "milky way" -> "the milky way"."""
    if phrase in _THE:
        return f"the {phrase}"
    head = _PREPOSITION.split(phrase, maxsplit=1)[0].split()[-1]
    plural = _PLURAL_S.search(head) or phrase.split()[0] in _PLURALS
    bare = plural or head in _BARE or _NAME.search(phrase)
    if bare and not _SOMEONE.match(phrase):
        return phrase
    return f"an {phrase}" if _AN.search(phrase) and not _A.search(phrase) else f"a {phrase}"


def instruction(kind: str, target: EmojiItem, rng: random.Random | None = None) -> str:
    """What a person says to get from a neighbour of that kind to `target`; without `rng`, the plainest way."""
    if kind == "hair":
        return {"bald": "make them bald", "beard": "give them a beard"}.get(
            target.hair or "", f"give them {target.hair}"
        )
    phrase = rng.choice(PHRASES[kind]) if rng else PHRASES[kind][0]
    return phrase.format(target=_said(kind, target), root=target.root)


def _said(kind: str, target: EmojiItem) -> str | None:
    match kind:
        case "skin_tone":
            return target.tone
        case "role":
            return with_article(target.role or "person")
        case "gender":
            return with_article(target.gender or "person")
        case "colour":
            return target.color
        case "style" | "direction":
            value: str = getattr(target, kind)
            return value
        case "expression":
            return target.subject
        case "species" | "replacement":
            return with_article(target.subject)
        case _:
            raise ValueError(f"no kind of edit is called {kind!r}")
