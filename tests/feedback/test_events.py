from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stores import begun, drawn, new_id, say, shown

from vca.feedback import events
from vca.feedback.errors import Conflict, NotFound, Unacceptable
from vca.feedback.events import Event
from vca.feedback.recording import Recorder, Sent, record, record_all
from vca.feedback.schema import feedback_event, outbox
from vca.feedback.store import Store


def rows(store: Store, table: sa.Table = feedback_event) -> list[sa.Row]:
    with store.database.reading() as connection:
        return list(connection.execute(sa.select(table)))


def test_fifty_threads_with_one_event_make_one_row(store: Store) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    event = Event(event_id=new_id(), presentation_id=seen.presentation_id, kind="pick", target=seen.slots[:1])

    recorder = Recorder(store)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: recorder.record(ann, event), range(50)))

    assert len(rows(store)) == len(rows(store, outbox)) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 49
    assert len({answer.received_at for answer in answers}) == 1


def test_the_same_id_with_another_body_is_a_conflict_and_changes_nothing(store: Store) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    first = Event(event_id=new_id(), presentation_id=seen.presentation_id, kind="pick", target=seen.slots[:1])
    record(store, ann, first)

    with pytest.raises(Conflict):
        record(store, ann, first.model_copy(update={"target": seen.slots[1:2]}))

    assert rows(store)[0].target == list(seen.slots[:1])


def test_events_of_one_group_have_each_their_own_answer(store: Store) -> None:
    """One transaction for all, and nobody's mistake is another's."""
    ann, bob = store.person("ann"), store.person("bob")
    seen, his = shown(store, ann), shown(store, bob)
    first = Event(event_id=new_id(), presentation_id=seen.presentation_id, kind="pick", target=seen.slots[:1])
    other_body = first.model_copy(update={"target": seen.slots[1:2]})
    not_shown = first.model_copy(update={"event_id": new_id(), "target": his.slots[:1]})
    not_hers = first.model_copy(update={"event_id": new_id(), "presentation_id": his.presentation_id})
    his_own = Event(event_id=new_id(), presentation_id=his.presentation_id, kind="accept", target=his.slots[:1])
    sent = [Sent(person=ann, event=one) for one in (first, first, other_body, not_shown, not_hers)]

    answers = record_all(store, [*sent, Sent(person=bob, event=his_own), Sent(person=bob, event=first)])

    kinds = [getattr(answer, "replayed", type(answer)) for answer in answers]
    assert kinds == [False, True, Conflict, Unacceptable, NotFound, False, NotFound]
    assert {row.event_id for row in rows(store)} == {first.event_id, his_own.event_id}
    assert len(rows(store, outbox)) == 2


def test_a_fault_of_one_event_is_nobody_elses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    sent = [
        Event(event_id=new_id(), presentation_id=seen.presentation_id, kind="pick", target=seen.slots[n : n + 1])
        for n in range(3)
    ]
    broken = sent[1].model_copy(update={"client_version": 5.0 + 1j})  # no database takes it

    answers = record_all(store, [Sent(person=ann, event=one) for one in (sent[0], broken, sent[2])])

    assert [isinstance(answer, Exception) for answer in answers] == [False, True, False]
    assert len(rows(store)) == 2


def test_a_picture_that_was_not_shown_cannot_be_picked(store: Store) -> None:
    ann = store.person("ann")
    seen, other = shown(store, ann), shown(store, ann)
    wrong = Event(event_id=new_id(), presentation_id=seen.presentation_id, kind="pick", target=other.slots[:1])

    with pytest.raises(Unacceptable, match="not shown"):
        record(store, ann, wrong)
    assert rows(store) == []


def test_the_database_itself_refuses_what_was_not_shown_and_what_is_changed_later(store: Store) -> None:
    ann = store.person("ann")
    seen, other = shown(store, ann), shown(store, ann)
    say(store, ann, seen, "pick", 0)
    values = dict(rows(store)[0]._mapping) | {"event_id": new_id(), "target": [other.slots[0]]}

    with pytest.raises(sa.exc.DBAPIError, match="not shown"), store.database.writing() as connection:
        connection.execute(sa.insert(feedback_event).values(values))
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.database.writing() as connection:
        connection.execute(sa.update(feedback_event).values(kind="accept"))


def test_somebody_elses_presentation_does_not_exist(store: Store) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    seen = shown(store, ann)

    with pytest.raises(NotFound):
        say(store, bob, seen, "pick", 0)
    with pytest.raises(NotFound):
        events.present(store, bob, round_id=seen.round_id)


@pytest.mark.parametrize(
    ("kind", "slots", "more", "says"),
    [
        ("pick", (0, 1), {}, "1 different pictures"),
        ("pick", (), {}, "1 different pictures"),
        ("pair", (0, 0), {}, "2 different pictures"),
        ("tie_good", (0,), {}, "2 to 4"),
        ("rate", (0,), {"body": {"style": 6}}, "body.style"),
        ("rate", (0,), {"body": {"beauty": 5}}, "body.beauty"),
        ("pick", (0,), {"text": "nice"}, "text: pick has none"),
        ("retract", (), {}, "names the event"),
        ("report", (0,), {"body": {"reason": "dull"}}, "body.reason"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_field(store: Store, kind, slots, more, says) -> None:  # type: ignore[no-untyped-def]
    ann = store.person("ann")
    seen = shown(store, ann)

    with pytest.raises(Unacceptable, match=says):
        say(store, ann, seen, kind, *slots, **more)


def test_only_ones_own_events_can_be_retracted(store: Store) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    seen, his = shown(store, ann), shown(store, bob)
    picked = say(store, ann, seen, "pick", 0)

    with pytest.raises(NotFound):
        say(store, bob, his, "retract", supersedes=picked.event_id)
    taken_back = say(store, ann, seen, "retract", supersedes=picked.event_id)
    with pytest.raises(Unacceptable, match="send the choice again"):
        say(store, ann, seen, "retract", supersedes=taken_back.event_id)


def test_slots_are_shuffled_and_stay_as_they_were_shown(store: Store) -> None:
    ann = store.person("ann")
    orders = set()
    for _ in range(12):
        seen = shown(store, ann)
        again = events.present(store, ann, round_id=seen.round_id)
        assert again == seen
        with store.database.reading() as connection:
            made = sa.text("SELECT candidate_id FROM candidate WHERE round_id = :r ORDER BY idx")
            ids = [
                str(one).replace("-", "")
                for one in connection.execute(made, {"r": _raw(store, seen.round_id)}).scalars()
            ]
        orders.add(tuple(ids.index(slot.replace("-", "")) for slot in seen.slots))
    assert len(orders) > 3


def test_the_order_is_known_before_the_pictures_are_and_fair() -> None:
    """One that is missing moves no other, and no place is favoured: 4000 rounds, 5 sigma."""
    firsts = []
    for _ in range(4000):
        round_id, ids = new_id(), [new_id() for _ in range(4)]
        _, slots = events.order(round_id, "grid", ids)
        assert events.order(round_id, "grid", reversed(ids))[1] == slots
        assert events.order(round_id, "grid", ids[1:])[1] == [one for one in slots if one != ids[0]]
        firsts.append(slots.index(ids[0]))
    for place in range(4):
        assert abs(firsts.count(place) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5


def _raw(store: Store, value: str) -> str:
    return value.replace("-", "") if store.database.sqlite else value


def test_a_probe_shows_the_same_pictures_the_other_way_round(store: Store) -> None:
    ann = store.person("ann")
    _, round_id = begun(store, ann)
    drawn(store)
    with pytest.raises(Unacceptable, match="shown before"):
        events.present(store, ann, round_id=round_id, again=True)
    seen = events.present(store, ann, round_id=round_id)

    probe = events.present(store, ann, round_id=round_id, again=True)

    assert probe.slots == seen.slots[::-1]
    assert probe.presentation_id != seen.presentation_id
    assert events.present(store, ann, round_id=round_id, again=True) == probe


def test_a_clock_that_is_years_off_is_clamped(store: Store) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    for off in (timedelta(days=3650), timedelta(days=-3650), timedelta(0)):
        say(store, ann, seen, "pick", 0, client_at=datetime.now(UTC) + off)
    say(store, ann, seen, "pick", 0, client_at=datetime.min)

    late, early, right, never = rows(store)
    assert late.event_at == late.received_at
    assert early.event_at == seen.shown_at == never.event_at
    assert seen.shown_at <= right.event_at <= right.received_at


WORDS = st.text(max_size=200)  # half a surrogate pair is no text, and is refused


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=WORDS)
def test_whatever_people_write_is_stored_verbatim_and_never_in_the_clear(store: Store, text: str) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    words = f"o'Brien\0 \u202e {text} <script>"

    event_id = say(store, ann, seen, "critique", text=words).event_id

    row = next(row for row in rows(store) if row.event_id == event_id)
    assert ann.key.open(row.text_enc, row=event_id) == words
    assert b"Brien" not in row.text_enc


def test_half_a_surrogate_pair_is_no_text(store: Store) -> None:
    ann = store.person("ann")
    with pytest.raises(ValidationError):
        say(store, ann, shown(store, ann), "critique", text="\ud800")


def test_an_accepted_picture_closes_the_dialogue(store: Store) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    say(store, ann, seen, "accept", 2)
    with store.database.reading() as connection:
        assert connection.execute(sa.text("SELECT status FROM dialogue")).scalar_one() == "accepted"
