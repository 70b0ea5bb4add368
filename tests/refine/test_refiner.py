"""Whatever the back end, a refinement keeps, fits and tells; here with the rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vca.refine.refiner import Refiner, fit
from vca.refine.settings import RefineSettings

CAPTION = "woman firefighter, medium-dark skin, twemoji style"
LONG = "a red car on a green hill, " + ", ".join(f"an old dog {n}" for n in range(40))


@pytest.fixture(scope="module")
def refiner(count_tokens):
    return Refiner(settings=RefineSettings(), count_tokens=count_tokens)


def test_it_tells_what_stayed_and_what_changed(refiner):
    result = refiner.refine(prompt=CAPTION, feedback="give them red hair and make the skin light")
    assert result.refined_prompt == "woman firefighter, light skin, red hair, twemoji style"
    assert set(result.kept) == {"woman", "firefighter", "twemoji style"}
    assert set(result.changed) == {"-medium-dark skin", "+light skin", "+red hair"}
    assert (result.action, result.backend, result.truncated, result.notice) == ("edit", "rules", (), None)


def test_the_first_round_ignores_history(refiner):
    history = [("make it blue", "a blue car"), ("add a dog", "a blue car, a dog")]
    first = refiner.refine(prompt=CAPTION, feedback="", history=history)
    assert first == refiner.refine(prompt=CAPTION, feedback="")
    assert (first.refined_prompt, first.action) == (CAPTION, "generate")


def test_too_long_a_prompt_loses_its_last_parts_and_says_which(refiner, count_tokens):
    result = refiner.refine(prompt=LONG, feedback="")
    assert count_tokens(result.refined_prompt) <= 77 < count_tokens(LONG)
    assert result.refined_prompt.startswith("a red car on a green hill, an old dog 0")
    assert ", ".join([result.refined_prompt, *result.truncated]) == LONG
    one_more = f"{result.refined_prompt}, {result.truncated[0]}"
    assert count_tokens(one_more) > 77  # no more went than had to


def test_what_the_person_just_said_outlives_older_parts(refiner, count_tokens):
    full = refiner.refine(prompt=LONG, feedback="").refined_prompt
    result = refiner.refine(prompt=full, feedback="add a white person in a wheelchair")
    assert result.refined_prompt.endswith("a white person in a wheelchair")
    assert result.refined_prompt.startswith("a red car on a green hill")
    assert count_tokens(result.refined_prompt) <= 77
    assert result.truncated
    assert all(part in full for part in result.truncated)


def test_an_overlong_subject_makes_room_for_what_was_just_said(refiner, count_tokens):
    subject = "a red car on a green hill " + "with an old dog " * 30
    result = refiner.refine(prompt=subject, feedback="add a white wheelchair")
    assert result.refined_prompt.startswith("a red car on a green hill with")
    assert result.refined_prompt.endswith(", a white wheelchair")
    assert count_tokens(result.refined_prompt) <= 77


@given(prompt=st.text(max_size=600), feedback=st.text(max_size=300), limit=st.integers(8, 77))
@settings(max_examples=150, deadline=None)
def test_the_limit_holds_for_any_text_and_saying_it_again_changes_nothing(count_tokens, prompt, feedback, limit):
    refiner = Refiner(settings=RefineSettings(max_tokens=limit), count_tokens=count_tokens)
    once = refiner.refine(prompt=prompt, feedback=f"add {feedback}")
    assert count_tokens(once.refined_prompt) <= limit
    if once.action == "edit":
        twice = refiner.refine(prompt=once.refined_prompt, feedback=f"add {feedback}")
        assert twice.refined_prompt == once.refined_prompt


@pytest.mark.parametrize("word", ["x" * 500, "語" * 500])
def test_one_endless_word_is_cut_by_letters(count_tokens, word):
    (kept,), (cut,) = fit([word], (), 77, count_tokens)
    assert kept + cut == word
    assert count_tokens(kept) <= 77 < count_tokens(kept + cut[0])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"backend": "endpoint", "model": "m"}, "endpoint_url"),
        ({"backend": "transformers"}, "model"),
        ({"backend": "endpoint", "model": "m", "endpoint_url": "ftp://x"}, "endpoint_url"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"api_key_env": "sk-secret"}, "api_key_env"),
        ({"colour": 1}, "colour"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(given, named):
    with pytest.raises(ValidationError, match=named):
        RefineSettings(**given)
