"""A prompt while it is being edited, one method per kind of edit."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vca.refine.words import (
    COLOUR,
    DET,
    GENDERED,
    IT,
    OPPOSITES,
    PERSON,
    PREP,
    SLOTS,
    TONE,
    article,
    fix_article,
    rank,
    split_article,
    split_parts,
    value_of,
)

History = Sequence[tuple[str, str]]  # (feedback, refined prompt) of the earlier rounds, oldest first


class Draft:
    """The prompt while it is being edited. Methods return whether there was something to do it to."""

    def __init__(self, parts: list[str], history: History) -> None:
        self.parts, self.history = parts, history
        self.hint: str | None = None

    @property
    def text(self) -> str:
        return ", ".join(self.parts)

    def head(self) -> tuple[str, str]:
        """The subject and the rest of its part: ("a red car", " on a hill"). Captions without articles don't divide."""
        subject = self.parts[0]
        if re.match(rf"(?i)(?:{DET}|two|three|four|many)\s", subject):
            end = re.search(rf"(?i)\s+(?=(?:{PREP}|who|that|which)\b|\w+ing\s+(?:{DET})\b)", subject)
        else:
            end = re.search(rf"(?i)(?<!ing)\s+(?=(?:{PREP})\s+(?:{DET})\b)", subject)  # "pointing at the viewer"
        return (subject[: end.start()], subject[end.start() :]) if end else (subject, "")

    def replace_head(self, value: str) -> bool:
        old, rest = self.head()
        det, noun = split_article(value)
        if re.match(rf"(?i)(?:(?:{DET}) )?{re.escape(noun)}(?!\w)", self.parts[0]) and " and " in noun:
            return True
        bare = not re.match(rf"(?i)(?:{DET})\s", old)
        self.parts[0] = (noun if bare else f"{det} {noun}".strip()) + rest
        return True

    def set(self, name: str, value: str) -> bool:
        slot = SLOTS[name]
        if not slot.found.fullmatch(slot.template.format(value)):
            self.hint = f"“{value}” is not a {name} that the rules know: what should be different?"
            return False
        for i, part in enumerate(self.parts):
            match = slot.found.search(part)
            if not match:
                continue
            group = "v" if match["v"] is not None else "w"
            if name == "hair" and match[0] != part and not (value.endswith("hair") and match[0].endswith("hair")):
                if value == "bald":
                    self.remove(match["v"])
                break
            start, end = match.span(group)
            text = slot.template.format(value) if group == "w" else value
            self.parts[i] = part[:start] + text + part[end:]
            return True
        return self.add(slot.template.format(value))

    def add(self, phrase: str) -> bool:
        for piece in split_parts(phrase):
            if piece.lower() in (p.lower() for p in self.parts):
                continue
            place = rank(piece)
            later = (i for i, part in enumerate(self.parts) if i > 0 and rank(part) > place)
            self.parts.insert(next(later, len(self.parts)), piece)
        return True

    def remove(self, phrase: str) -> bool:
        noun = split_article(phrase)[1]
        words = rf"{re.escape(noun)}(?:e?s)?\b"
        is_subject = re.search(rf"(?i)\b{words}$", self.head()[0]) and " and " not in self.parts[0]
        if not is_subject and not re.fullmatch(rf"(?i){PREP}|{DET}", noun) and self._remove(words):
            return True
        self.hint = f"“{noun}” is not something that can be taken out of “{self.text}”: what should be different?"
        return False

    def _remove(self, words: str) -> bool:
        for i, part in enumerate(self.parts):
            if i and re.fullmatch(rf"(?i)(?:with )?(?:(?:{DET}) )?(?:[\w-]+ )?{words}(?: (?:skin|hair|style))?", part):
                del self.parts[i]
                return True
            middle = rf"(?:(?!(?:{PREP}|{DET})\b)[\w-]+ ){{0,2}}?"
            for pattern in (
                rf"(?i)\s+(?:{PREP}) (?:(?:{DET}) )?{middle}{words}(?! (?!{PREP}\b)\w)",
                rf"(?i)\b(?:(?:{DET}) )?{middle}{words} and (?=\w)",
                rf"(?i)(?<=\w) {words}(?= |$)",
            ):
                shorter = re.sub(pattern, "", part, count=1).strip()
                if shorter and shorter != part:
                    self.parts[i] = shorter
                    return True
        return False

    def swap(self, old: str, new: str) -> bool:
        """Every `old` becomes `new`, but not inside an existing `new` (so that saying it twice changes nothing)."""
        old, new = split_article(old)[1], split_article(new)[1]
        pattern = rf"(?i)\b{re.escape(new)}(?!\w)|(?:\b(?P<det>an?|the) )?(?<!\w)(?P<old>{re.escape(old)})(?!\w)"
        found = False

        def substitute(match: re.Match[str]) -> str:
            nonlocal found
            found = True
            if match["old"] is None:
                return match[0]
            det = match["det"]
            return f"{article(new) if det.lower() in ('a', 'an') else det} {new}" if det else new

        parts = [re.sub(pattern, substitute, part) for part in self.parts]
        if not old or not new or not found:
            self.hint = f"“{old}” is not in “{self.text}”: what should become “{new}”?"
            return False
        self.parts = split_parts(", ".join(parts))
        return True

    def describe(self, noun: str, value: str) -> bool:
        """`value` before `noun`, in place of a colour there if it is one; a noun not in the prompt is added with it."""
        value = value.lower() if re.fullmatch(COLOUR, value, re.I) else value
        contrary = [old for old, new in OPPOSITES.items() if value in (old, new) or OPPOSITES.get(value) == old]
        kind = COLOUR if re.fullmatch(COLOUR, value) else "|".join(map(re.escape, [value, *contrary]))
        gap = rf"((?:(?!(?:{PREP}|{DET})\b)[\w-]+ ){{0,2}}?{re.escape(noun)}(?!\w))"
        for pattern in (rf"(?i)\b(?:{kind}) {gap}", rf"(?i)\b({re.escape(noun)})(?!\w)"):
            for i, part in enumerate(self.parts):
                match = re.search(pattern, part)
                if match:
                    changed = f"{value} {match[1]}"
                    self.parts[i] = fix_article(part[: match.start()] + changed + part[match.end() :], value)
                    return True
        return self.add(f"{value} {noun}")

    def recolour(self, colour: str) -> bool:
        colour = colour.lower()
        head, rest = self.head()
        changed, n = re.subn(rf"(?i)\b(?:{COLOUR})\b(?! hair)", colour, head, count=1)
        if not n:
            changed = re.sub(rf"(?i)^((?:{DET}) )?", lambda m: f"{m[1] or ''}{colour} ", head, count=1)
        self.parts[0] = fix_article(changed, colour) + rest
        return True

    def gender(self, word: str) -> bool:
        column = next(row.index(word) for row in GENDERED if word in row)
        rows = {w: row for row in reversed(GENDERED) for w in row}  # the first row that has a word counts
        part, seen = self.parts[0], False

        def substitute(match: re.Match[str]) -> str:
            nonlocal seen
            seen = True
            new = rows[match[0].lower()][column]
            follows = part[match.end() :].strip()
            if new == "person" and PERSON.match(follows):
                return ""
            return new.title() if match[0][0].isupper() else new

        names = "|".join(sorted(map(re.escape, rows), key=len, reverse=True))
        changed = re.sub(rf"(?i)(?<![\w-])(?:{names})(?![\w’'])", substitute, part)
        if not seen and PERSON.search(self.head()[0]):
            prefix = "" if word == "person" else f"{word} "
            changed = re.sub(rf"(?i)^((?:{DET}) )?", lambda m: f"{m[1] or ''}{prefix}", part, count=1)
        elif not seen:
            return self.replace_head(f"a {word}")
        self.parts[0] = " ".join(changed.split())
        return True

    def role(self, role: str) -> bool:
        """ "woman firefighter" as a pilot is "woman pilot"; a person of unsaid gender is just "pilot"."""
        noun = split_article(role)[1]
        who = re.search(r"(?i)\b(?:woman|man|girl|boy|lady)\b", self.head()[0])
        return self.replace_head(f"a {who[0]} {noun}" if who else f"{article(noun)} {noun}")

    def opposite(self, word: str) -> bool:
        new = OPPOSITES.get(word.lower())
        if new is None:
            return self.add(f"less {word}")
        for old in (new, word):
            for i, part in enumerate(self.parts):
                taken = {at for slot in SLOTS.values() for m in slot.found.finditer(part) for at in range(*m.span())}
                for match in re.finditer(rf"(?i)\b{re.escape(old)}\b", part):
                    if match.start() not in taken:
                        self.parts[i] = fix_article(part[: match.start()] + new + part[match.end() :], new)
                        return True
        return self.add(new)

    def expression(self, value: str) -> bool:
        """A face is its expression ("grinning face"); anyone else has one."""
        face = re.search(r"(?i)\b(?:face|cat|head)\b", f"{self.parts[0]} {value}")
        if not face or split_article(self.parts[0])[0]:
            return self.set("expression", re.sub(r"(?i) (?:face|expression)$", "", split_article(value)[1]))
        self.parts[0] = value
        return True

    def slot_word(self, value: str) -> bool:
        """`value` alone names a slot: "red hair", "dark skin", "facing left", "watercolor"."""
        value = split_article(value)[1]
        for name, slot in SLOTS.items():
            match = slot.found.fullmatch(value)
            if match:
                return self.set(name, value_of(match))
        return False

    def become(self, value: str, *, person: bool) -> bool:
        """ "make it VALUE"."""
        instead = bool(re.search(r"(?i)\s+instead$", value))
        value = re.sub(r"(?i)\s+instead$", "", value)
        det, noun = split_article(value)
        if noun.lower() in {w for row in GENDERED[:3] for w in row} and not instead:
            return self.gender(noun.lower())
        if re.fullmatch(COLOUR, value, re.I):
            return self.recolour(value)
        if not (det and instead) and self.slot_word(value):
            return True
        if person and (det or PERSON.fullmatch(noun)):
            return self.role(value)
        if det or instead:
            return self.replace_head(value)
        return self.add(value)

    def change(self, what: str, value: str) -> bool:
        """ "change WHAT to VALUE"."""
        noun = split_article(what)[1].lower()
        if noun in ("expression", "facial expression", "face expression"):
            return self.expression(value)
        if re.fullmatch(r"skin(?: tone| colou?r)?", noun):
            tone = re.fullmatch(rf"(?i)({TONE})(?: skin)?(?: tone)?", value)
            return self.set("skin", tone[1].lower().replace(" ", "-")) if tone else False
        if re.fullmatch(r"hair(?: colou?r)?", noun):
            value = split_article(value)[1]
            hair = value if re.fullmatch("bald|beard|.*hair", value) else f"{value} hair"
            return self.set("hair", hair)
        if noun in ("style", "drawing style", "background"):
            return self.set(noun.split()[-1], re.sub(r"(?i) (?:style|background)$", "", split_article(value)[1]))
        if noun in ("color", "colour"):
            return self.recolour(value) if re.fullmatch(COLOUR, value, re.I) else False
        if noun == "gender":
            return self.become(value, person=True)
        if match := re.fullmatch(r"(.+)[’']s colou?r|colou?r of (?:the )?(.+)", noun):
            return self.describe(match[1] or match[2], value)
        if re.fullmatch(IT, what, re.I):
            person = what.lower() in ("them", "him", "her")
            return self.become(value if split_article(value)[0] else f"{value} instead", person=person)
        return self.swap(what, value)

    def undo(self) -> bool:
        earlier = [refined for _, refined in self.history if split_parts(refined) not in ([], self.parts)]
        if earlier:
            self.parts = split_parts(earlier[-1])
        else:
            self.hint = "There is no earlier prompt to go back to: what should be different?"
        return bool(earlier)

    def start_over(self, prompt: str | None) -> bool:
        if prompt:
            self.parts = split_parts(prompt)
        else:
            self.hint = "What should the new picture show?"
        return bool(prompt)
