"""The words that prompts are made of: parts, attributes with one value at a time, and what they exclude."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

TONE = "medium[- ]light|medium[- ]dark|light|medium|dark"
COLOUR = (
    "(?:(?:light|dark|pale|deep|bright)[- ])?(?:red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|"
    "gr[ae]y|gold|golden|silver|turquoise|teal|cyan|magenta|beige)"
)
HAIR = f"(?:(?:long|short|curly|wavy|straight|blonde?|ginger|{COLOUR}) )+hair|bald|beard"
MEDIUM = (
    "watercolou?r|oil painting|pencil sketch|sketch|line art|pixel art|cartoon|comic|anime|photo|photograph|"
    "photorealistic"
)
DET = "an?|the|some|its|their|his|her|my|this|that"
PREP = (
    "on|in|at|with|without|under|over|near|by|beside|behind|against|above|below|inside|outside|wearing|holding|and|"
    "next to|in front of"
)
IT = "(?:it|this|that|them|him|her|the (?:picture|image|subject|person|thing|one))"
# One row per kind of word: female, male, neutral.
GENDERED = (
    ("woman", "man", "person"),
    ("women", "men", "people"),
    ("girl", "boy", "child"),
    ("female", "male", "person"),
    ("lady", "gentleman", "person"),
    ("queen", "king", "monarch"),
    ("princess", "prince", "person with crown"),
    ("mermaid", "merman", "merperson"),
    ("mrs. claus", "santa claus", "mx claus"),
    ("mother", "father", "parent"),
    ("daughter", "son", "child"),
    ("sister", "brother", "sibling"),
    ("her", "his", "their"),
)
# Person nouns that a gender word can stand before ("woman cook"); other nouns are things.
PERSON = re.compile(
    r"(?i)\b(?:\w+(?:er|or|ist|ian|naut|hero|villain)|cook|guard|judge|pilot|student|mechanic|detective|chef|nurse|"
    r"elf|fairy|genie|vampire|zombie|mage|ninja|breast-feeding)\b"
)
OPPOSITES = dict(
    re.findall(
        r"(\S+)/(\S+)",
        "dark/bright bright/dim big/small large/small small/big tiny/big old/young young/old sad/happy happy/sad "
        "angry/calm serious/cheerful blurry/sharp plain/detailed simple/detailed busy/simple cluttered/tidy cold/warm "
        "warm/cool dull/vivid colorful/muted colourful/muted empty/full realistic/stylized cartoonish/realistic "
        "close/distant far/close-up boring/lively",
    )
)


WORD = rf"(?!(?:{PREP}|{DET})\b)[\w’'-]+"


class Slot(NamedTuple):
    """An attribute with one value at a time. `found` captures the value as v; `template` writes it as a part."""

    found: re.Pattern[str]
    template: str
    rank: int  # order among the parts


SLOTS = {
    "skin": Slot(re.compile(rf"(?i)\b(?P<v>{TONE})[ -]skin(?:ned)?(?: tone)?\b"), "{} skin", 1),
    "hair": Slot(re.compile(rf"(?i)\b(?P<v>{HAIR}|(?<=with ){WORD} hair)\b|^(?P<w>{WORD} hair)$"), "{}", 2),
    "direction": Slot(
        re.compile(r"(?i)\b(?P<v>facing (?:left|right|forward|backward|away|up|down|the camera))\b"), "{}", 3
    ),
    "expression": Slot(re.compile(r"(?i)(?P<v>[\w-]+) expression\b"), "{} expression", 3),
    "background": Slot(re.compile(rf"(?i)(?P<v>{COLOUR}|^{WORD} {WORD}|{WORD}) background\b"), "{} background", 4),
    "style": Slot(
        re.compile(rf"(?i)(?:^|\bin (?:an? |the )?)(?P<v>{WORD}(?: {WORD}){{0,2}}) style\b|^(?:an? )?(?P<w>{MEDIUM})$"),
        "{} style",
        6,
    ),
}
_FREE = 5  # rank of any other addition: before the style


def clean(text: str) -> str:
    """NFC, without control characters and lone surrogates; one space between words, lines kept."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") and c != "\n" else c for c in text)
    return "\n".join(" ".join(line.split()) for line in text.split("\n")).strip()


def split_parts(prompt: str) -> list[str]:
    return [part for part in (" ".join(p.split()) for p in clean(prompt).split(",")) if part]


def attributes(prompt: str) -> list[str]:
    """What a prompt says, as things to keep or lose: slot values as phrases, other content words one by one."""
    found: list[str] = []
    for part in split_parts(prompt.lower()):
        for slot in SLOTS.values():
            for match in slot.found.finditer(part):
                found.append(slot.template.format(value_of(match)))
            part = slot.found.sub(" ", part)
        found += re.findall(r"[^\W_]+(?:[-’'][^\W_]+)*", re.sub(rf"\b(?:{DET}|{PREP}|of|to|is|are)\b", " ", part))
    return found


def value_of(match: re.Match[str]) -> str:
    """What a slot's pattern captured."""
    return next(v for v in match.groupdict().values() if v)


def rank(part: str) -> int:
    """Where a part stands in a caption: skin, hair, direction, background, anything else, style."""
    return next((slot.rank for slot in SLOTS.values() if slot.found.fullmatch(part)), _FREE)


def split_article(phrase: str) -> tuple[str, str]:
    """ "a banana" as ("a", "banana")."""
    match = re.match(rf"(?i)({DET})\s+(?=\S)", phrase)
    return (match[1], phrase[match.end() :]) if match else ("", phrase)


def article(noun: str) -> str:
    return "an" if re.match(r"(?i)(?!uni|use|eu|one)[aeiou]|hour|honest", noun) else "a"


def fix_article(text: str, word: str) -> str:
    """a/an before `word`, as it needs."""
    return re.sub(rf"(?i)\ban? (?={re.escape(word)}\b)", f"{article(word)} ", text)
