"""A list of words that hide a prompt, and how a prompt is searched for them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from vca.errors import ArtifactError

SHIPPED = Path(__file__).with_name("blocked_words.txt")
SECTIONS = ("always", "minor", "with a minor", "innocent")
AGE = r"(?:[1-9]|1[0-7])[\W_]*(?:years?[\W_]*old|y[\W_]*o)"  # below 18
PHRASE = re.compile(r"[^\W_]+(?:[ '-]+[^\W_]+)*")
LOOKALIKES = {"a": "a4@", "e": "e3", "i": "i1!", "l": "l1", "o": "o0", "s": "s5$", "t": "t7"}


class WordList:
    """The sections of a file as `blocked_words.txt`, whose header explains them."""

    def __init__(self, path: Path = SHIPPED) -> None:
        """Errors: ArtifactError for a file that is missing, isn't such a list, or would block nothing."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"the word list {path} can't be read ({error}); check safety.blocked_words") from error
        headings = {f"[{section}]": section for section in SECTIONS}
        sections: dict[str, list[str]] = {section: [] for section in SECTIONS}
        section = None
        for line in filter(None, (plain(line.partition("#")[0]).strip() for line in lines)):
            if line in headings:
                section = headings[line]
            elif section and PHRASE.fullmatch(line):
                sections[section].append(line)
            else:
                raise ArtifactError(
                    f"the word list {path} has the line {line!r}; allowed: first one of {', '.join(headings)}, then "
                    "words of letters and digits"
                )
        if not sections["always"]:
            raise ArtifactError(f"the word list {path} has nothing under [always]; it would let every prompt pass")
        self._always = _pattern(map(_spellings, sections["always"]))
        self._minor = _pattern([AGE, *map(_spellings, sections["minor"])])
        self._with_a_minor = _pattern(map(_spellings, sections["with a minor"]))
        self._innocent = _pattern(map(_spellings, sections["innocent"]))

    def blocks(self, prompt: str) -> bool:
        """True where the prompt is to be hidden."""
        return any(map(self._found_in, _readings(prompt)))

    def _found_in(self, text: str) -> bool:
        text = self._innocent.sub(" ", text)
        sexual_minor = self._minor.search(text) and self._with_a_minor.search(text)
        return bool(self._always.search(text) or sexual_minor)


def plain(text: str, *, invisible: str = "") -> str:
    """Lower case without accents, compatibility forms as their letters, invisible characters as `invisible`."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(_visible(character, invisible) for character in decomposed)


def _visible(character: str, invisible: str) -> str:
    category = unicodedata.category(character)
    if category in ("Mn", "Me"):
        return ""
    return invisible if category == "Cf" or (category == "Cc" and not character.isspace()) else character


def _readings(prompt: str) -> Iterator[str]:
    """An invisible character may stand within a word or between two."""
    yield plain(prompt)
    yield plain(prompt, invisible=" ")


def _pattern(expressions: Iterable[str]) -> re.Pattern[str]:
    """Any of them as whole words; no expression at all matches nothing."""
    return re.compile(r"(?<![^\W_])(?:" + "|".join([*expressions, r"(?!)"]) + r")(?![^\W_])")


def _spellings(phrase: str) -> str:
    words = re.split(r"[\W_]+", phrase)
    return r"[\W_]*".join("".join(f"[{LOOKALIKES.get(letter, letter)}]" for letter in word) for word in words)
