"""What features say after each event, against the same figures counted the slow way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from stores import open_store, say, shown

from vca.feedback import events
from vca.feedback.feature_rows import WINDOW, Fact, dialogue_rows, prompt_rows, rows, subject_rows, touched
from vca.feedback.store import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("pick", "pair", "tie_good", "all_bad", "accept", "retract", "critique")


@st.composite
def histories(draw: st.DrawFn) -> list[Fact]:
    """Events of one person about few presentations, some of them repeats of others; some take back earlier ones.

    In the order of the store: by time, and those of one moment by their id, which says nothing.
    """
    facts: list[Fact] = []
    at = START
    for number in range(draw(st.integers(1, 15))):
        at += draw(st.sampled_from([timedelta(0), timedelta(hours=1), timedelta(days=10), WINDOW]))
        shown_as = draw(st.integers(0, 4))
        facts.append(
            Fact(
                event_id=f"{draw(st.integers(0, 9))}{number}",
                subject_id="s",
                dialogue_id="d",
                prompt_hmac="p",
                presentation_id=f"p{shown_as}",
                probe_of=f"p{shown_as - 3}" if shown_as >= 3 else None,
                expected="a" if shown_as == 2 else None,
                depth=draw(st.integers(1, 4)),
                kind=draw(st.sampled_from(KINDS)),
                target=tuple(draw(st.permutations("abc"))[: draw(st.integers(1, 2))]),
                supersedes=draw(st.sampled_from([None, None, *(fact.event_id for fact in facts)])),
                received_at=at,
                reward=draw(st.sampled_from([None, 0.25, 0.5])),
            )
        )
    return sorted(facts, key=lambda fact: (fact.received_at, fact.event_id))


def standing(facts: list[Fact]) -> list[Fact]:
    """The choices of a history that nothing took back."""
    gone = {fact.supersedes for fact in facts}
    return [fact for fact in facts if fact.kind not in ("retract", "critique") and fact.event_id not in gone]


def likes(fact: Fact) -> set[str]:
    return set() if fact.kind == "all_bad" else {fact.target[0]} if fact.kind == "pair" else set(fact.target)


@given(facts=histories())
def test_features_are_what_counting_everything_again_gives(facts: list[Fact]) -> None:
    made = zip(subject_rows(facts), dialogue_rows(facts), prompt_rows(facts), strict=True)
    for end, (subject, dialogue, prompt) in enumerate(made, start=1):
        so_far, now = facts[:end], facts[end - 1].received_at
        held = standing(so_far)
        picks = [fact for fact in held if fact.kind == "pick"]
        assert subject["picks_30d"] == sum(now - fact.received_at < WINDOW for fact in picks)
        answers = {fact.presentation_id: likes(fact) for fact in held}
        repeats = {fact.presentation_id: fact.probe_of for fact in so_far if fact.probe_of}
        asked = [(answers[again], answers[of]) for again, of in repeats.items() if again in answers and of in answers]
        right = [bool(one & other) or one == other for one, other in asked]
        right += [answers["p2"] == {"a"}] if "p2" in answers else []
        assert subject["agreement"] == (sum(right) / len(right) if right else None)
        assert subject["trust"] == (3 + sum(right)) / (4 + len(right))
        chosen = [fact.reward for fact in held if fact.kind in ("pick", "accept")]
        assert dialogue["depth"] == max(fact.depth for fact in so_far)
        assert dialogue["last_reward"] == (chosen[-1] if chosen else None)
        assert dialogue["accepted"] == any(fact.kind == "accept" for fact in held)
        presented = {fact.presentation_id for fact in so_far}
        bad = {fact.presentation_id for fact in held if fact.kind == "all_bad"}
        assert prompt == {"shown": len(presented), "picks": len(picks), "all_bad_share": len(bad) / len(presented)}


def test_rows_come_from_the_store_without_words_and_only_with_consent(store: Store) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    store.agree(ann, {"train": True})
    seen = shown(store, ann, "red heart")
    say(store, ann, seen, "pick", 0)
    again = events.present(store, ann, round_id=seen.round_id, again=True)
    said = say(store, ann, again, "pick", 0)  # the first of the reversed order: another picture
    say(store, bob, shown(store, bob, "red heart"), "pick", 0)

    (first, second) = rows(store, "subject_stats")
    (_, prompt) = rows(store, "prompt_stats")

    assert set(first) == {"subject_id", "event_timestamp", "as_of", "picks_30d", "agreement", "trust"}
    assert (first["picks_30d"], first["agreement"]) == (1, None)
    assert (second["picks_30d"], second["agreement"], second["trust"]) == (2, 0.0, 3 / 5)
    assert prompt["shown"] == 2  # Bob's isn't there: he hasn't agreed
    keys = touched(store, [said.event_id])
    assert keys["subject_stats"] == [ann.subject_id]
    assert list(rows(store, "prompt_stats", keys=keys["prompt_stats"]))[-1] == prompt
    store.agree(ann, {"train": False})
    assert list(rows(store, "subject_stats")) == []


def test_of_one_moment_the_last_row_stays(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import sqlalchemy as sa

    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path)
    ann = store.person("ann")
    store.agree(ann, {"train": True})
    seen = shown(store, ann)
    for _ in range(3):
        say(store, ann, seen, "pick", 0)
    with store.database.writing() as connection:  # a clock that stood still
        connection.execute(sa.text("DROP TRIGGER feedback_event_append_only"))
        connection.execute(
            sa.text("UPDATE feedback_event SET received_at = (SELECT min(received_at) FROM feedback_event)")
        )
    made = list(rows(store, "subject_stats"))
    assert [row["picks_30d"] for row in made] == [3]
    store.close()
