"""The word list: what it stops however it is spelt, and what it leaves alone."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.data.emoji.catalogue import caption, load_catalogue
from vca.errors import ArtifactError
from vca.safety.words import SHIPPED, WordList, plain

WORDS = WordList()
ALWAYS = [
    line
    for line in SHIPPED.read_text(encoding="utf-8").partition("[always]\n")[2].partition("[minor]")[0].splitlines()
    if line and not line.startswith("#")
]
INVISIBLE = ["", "", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u2060", "\u202e", "\x00", "\u0301", "\u034f", "\u20dd"]
LOOKALIKES = {"a": "4@", "e": "3", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7"}
AROUND = st.sampled_from(["", " ", ", a red car, ", "!", "'", "_", "🙂", "\n", "¿", " 猫 "])


def full_width(letter: str) -> str:
    return chr(ord(letter) + 0xFEE0) if letter.isascii() and letter.isalpha() else letter


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """A blocked phrase among other words, each of its letters in some disguise."""
    letters = []
    for letter in draw(st.sampled_from(ALWAYS)):
        forms = [letter, letter.upper(), full_width(letter), *LOOKALIKES.get(letter, "")]
        gap = ["", *" -\u00a0\n."] if letter == " " else forms
        letters += [draw(st.sampled_from(gap)), draw(st.sampled_from(INVISIBLE))]
    return draw(AROUND) + "".join(letters) + draw(AROUND)


@given(disguised())
def test_no_disguise_hides_a_blocked_phrase(prompt: str) -> None:
    assert WORDS.blocks(prompt)


@given(st.sampled_from([phrase for phrase in ALWAYS if " " not in phrase]), st.sampled_from("qz7é"), st.booleans())
def test_only_whole_words_are_blocked(word: str, letter: str, before: bool) -> None:
    assert not WORDS.blocks(letter + word if before else word + letter)


@given(st.text())
def test_any_text_is_judged_and_the_plain_form_is_final(text: str) -> None:
    once = plain(text)
    assert plain(once) == once
    assert WORDS.blocks(text + " porn")
    assert not any(unicodedata.category(character) == "Cf" for character in once)


def test_every_caption_and_keyword_of_the_shipped_catalogue_passes() -> None:
    items = load_catalogue().items
    texts = {caption(item, style=True) for item in items}
    texts |= {", ".join((item.subject, *item.keywords)) for item in items}
    assert len(texts) > 9000
    assert [text for text in texts if WORDS.blocks(text)] == []


@pytest.mark.parametrize(
    "prompt",
    [
        "a cock crowing at dawn, rooster on a fence",
        "breast-feeding, light skin",
        "pussy willow in a vase",
        "a cocktail in Scunthorpe, Essex, after the analysis by a therapist",
        "grapes, skyscraper, a drapery",
        "marble statue of a nude man, museum",
        "nude colour pumps",
        "a blue tit on a branch, two boobies on Galápagos",
        "black Gore-Tex jacket",
        "portrait of Al Gore",
        "a rape field in bloom, oilseed rape to the horizon",
        "a same-sex couple with a child",
        "a naked mole rat held by a child",
        "a girl in a bikini at the beach",
        "a boy in red underwear",
        "110 year old naked man",
        "sexy 18 year old",
        "an 11 year old in a red coat",
        "blood orange, dead leaves, skull, coffin, kitchen knife",
        "penal colony, anal­ysis",
        "",
        " \n",
    ],
)
def test_ordinary_prompts_pass(prompt: str) -> None:
    assert not WORDS.blocks(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "naked child",
        "a boy and his dog, seductive",
        "nude 9 year old",
        "s3xy 17-y-o",
        "17yo in lingerie",
        "1 years old, topless",
        "nude\u200bchild",  # the invisible character parts the two words
        "erotic drawing of school girls",
        "al gore, gore",
        "same-sex porn",
    ],
)
def test_these_are_blocked(prompt: str) -> None:
    assert WORDS.blocks(prompt)


def test_another_list_can_take_its_place(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# ours\n[always]\nPurple-Cow  # a comment\nd'oh\n", encoding="utf-8")
    words = WordList(file)
    assert words.blocks("the purple cow")
    assert words.blocks("a D'OH!")
    assert not words.blocks("porn, naked child, 9 year old, cow")  # empty sections match nothing


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", r"nothing under \[always\]"),
        (b"[minor]\nchild\n", r"nothing under \[always\]"),
        (b"porn\n", "'porn'; allowed: first one of"),
        (b"[alway]\nporn\n", r"'\[alway\]'; allowed"),
        (b"[always]\na$$\n", r"'a\$\$'; allowed"),  # as letters alone it would be "a"
        (b"\xff\xfe\n", "can't be read"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=told):
        WordList(file)


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere.*check safety\.blocked_words"):
        WordList(tmp_path / "nowhere.txt")
