"""What an operator is told of everybody's choices, and the commands that tell it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from people import picked, take, willing
from stores import begun, drawn, open_store, say
from typer.testing import CliRunner

from vca.cli_feedback import app
from vca.feedback import events, reading
from vca.feedback.events import Presentation
from vca.feedback.recording import Sent, record_all
from vca.feedback.reliability import Reliability, measure
from vca.feedback.schema import candidate
from vca.feedback.store import Person, Store, now
from vca.progress import Quiet


@pytest.fixture(autouse=True)
def ten_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "now", lambda: now() + timedelta(seconds=reading.LAG_S))


def measured(store: Store) -> Reliability:
    return measure(store, progress=Quiet())


def probed(store: Store, person: Person, first: int, again: int) -> Presentation:
    """A round picked from twice, the same pictures in the reverse order; slots count in the first order."""
    _, round_id = begun(store, person)
    drawn(store)
    seen = events.present(store, person, round_id=round_id)
    probe = events.present(store, person, round_id=round_id, again=True)
    say(store, person, seen, "pick", first)
    say(store, person, probe, "pick", 3 - again)
    return seen


def test_an_honest_crowd_raises_no_alarm(store: Store) -> None:
    people = [willing(store, f"person {number}") for number in range(4)]
    for number in range(24):
        picked(store, people[number % 4], slot=(number * 7) % 4)
    for person in people:
        probed(store, person, 1, 1)

    found = measured(store)

    assert found.alarms == []
    assert (found.people, found.dialogues, found.choices) == (4, 28, 32)
    assert found.slots[0].picks == (6, 10, 6, 6)  # what probes say is no pick
    assert (found.flips.value, found.flips.n) == (0.0, 4)
    assert any("too few to tell" in line for line in found.lines())


def test_two_hundred_sybils_for_the_first_place_are_seen_and_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 18: they push one picture, drawn alike for each of them, of one prompt."""
    promoted = []
    for number in range(200):
        seen, _ = picked(store, willing(store, f"sybil {number}"), slot=0, prompt="buy this")
        promoted.append(seen.slots[0])
    honest = [picked(store, willing(store, f"person {number}"), slot=number % 4)[1] for number in range(8)]
    with store.database.writing() as connection:
        alike = sa.update(candidate).where(candidate.c.candidate_id.in_(promoted)).values(phash="0f" * 8)
        connection.execute(alike)

    found = measured(store)

    assert found.slots[0].p < 1e-50
    assert found.clusters == 1
    assert any("slot 1 has 202 of 208 picks" in alarm for alarm in found.alarms)
    assert any("a crowd chose one picture" in alarm for alarm in found.alarms)
    manifest = take(store, monkeypatch).manifest
    assert manifest.excluded_pairs == {"cluster": 600}
    assert manifest.usable == 3 * len(honest)


def test_a_person_who_answers_at_random_is_not_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, bob = willing(store), willing(store, "bob")
    for number in range(6):
        probed(store, ann, number % 4, (number + 1) % 4)
        probed(store, bob, number % 4, number % 4)

    found = measured(store)

    assert found.untrusted == 1
    assert (found.flips.value, found.flips.n) == (0.5, 12)
    manifest = take(store, monkeypatch).manifest
    assert (manifest.usable, manifest.people) == (18, 1)
    assert manifest.excluded_pairs == {"failed_probe": 18}
    picked(store, ann)
    assert take(store, monkeypatch).manifest.excluded_pairs == {"failed_probe": 18, "low_trust": 3}


def test_faster_than_people_can(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = store.settings.rules.model_copy(update={"burst_events": 5})
    store.settings = store.settings.model_copy(update={"rules": rules})
    for _ in range(5):
        picked(store, willing(store))
    for _ in range(4):
        picked(store, willing(store, "bob"))
    assert measured(store).in_bursts == 1
    assert take(store, monkeypatch).manifest.excluded_pairs == {"burst": 15}


def test_a_check_that_fails_to_answer_excludes_nobody_and_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 16."""
    ann = willing(store)
    for number in range(10):
        _, round_id = begun(store, ann)
        drawn(store)
        seen = events.present(store, ann, round_id=round_id)
        event = events.Event.model_validate(
            {
                "event_id": f"00000000-0000-4000-8000-{number:012d}",
                "presentation_id": seen.presentation_id,
                "kind": "pick",
                "target": seen.slots[:1],
            }
        )
        gates: dict[str, events.Gate] = {"bot": "unknown" if number < 4 else "pass", "rate": "pass"}
        record_all(store, [Sent(person=ann, event=event, gates=gates)])
    found = measured(store)
    assert found.gates == {"pass": 6, "unknown": 4}
    assert any("failed to answer for 4 of 10" in alarm for alarm in found.alarms)
    manifest = take(store, monkeypatch).manifest
    assert (manifest.usable, manifest.unknown_gates) == (30, 4)


def test_people_who_see_the_same_pictures_are_compared(store: Store) -> None:
    ann, bob = willing(store), willing(store, "bob")
    first, second = picked(store, ann, slot=0)[0], picked(store, bob, slot=0)[0]
    with store.database.writing() as connection:  # bob was shown what ann was shown
        for mine, theirs in zip(second.slots, first.slots, strict=True):
            image = sa.select(candidate.c.image_sha256).where(candidate.c.candidate_id == theirs).scalar_subquery()
            this = candidate.c.candidate_id == mine
            connection.execute(sa.update(candidate).where(this).values(image_sha256=image))
    for person, seen, stars in ((ann, first, 4), (bob, second, 4)):
        say(store, person, seen, "rate", 0, body={"style": stars})
        say(store, person, seen, "rate", 1, body={"style": 1})
    found = measured(store)
    assert (found.picks.value, found.picks.n) == (1.0, 1)
    assert (found.ratings["style"].value, found.ratings["style"].n) == (pytest.approx(1.0), 2)
    assert found.ratings["coherence"].value is None


def test_the_commands(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path)
    picked(store, willing(store))
    before = now()
    picked(store, willing(store))
    store.close()
    settings = {"url": f"sqlite:///{tmp_path}/store.sqlite", "objects": f"{tmp_path}/pictures"}
    settings |= {"key": f"{tmp_path}/master.key", "snapshots": f"{tmp_path}/snapshots"}
    sets = [word for name, value in settings.items() for word in ("--set", f"feedback.{name}={value}")]

    def told(*command: str) -> str:
        done = CliRunner().invoke(app, [*command, *sets], catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    assert "6 pairs of 1 people, 2 dialogues" in told("snapshot")
    assert "nothing new, 6 pairs" in told("snapshot")
    assert "3 pairs" in told("snapshot", "--as-of", before.isoformat())
    assert len(told("snapshots").splitlines()) == 3
    assert "slots of 4" in told("quality")
    assert json.loads(told("quality", "--json"))["choices"] == 2
    from vca.errors import SettingsError

    with pytest.raises(SettingsError, match="ISO time"):
        told("snapshot", "--as-of", "yesterday")
