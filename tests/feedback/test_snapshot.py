from __future__ import annotations

import shutil
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from people import picked, rows, take, willing
from stores import begun, drawn, new_id, open_store, say, shown

from vca.errors import ArtifactError, SettingsError
from vca.feedback import dialogues, erasure, events, rules, snapshot, snapshots
from vca.feedback.dialogues import RoundRequest, Words
from vca.feedback.errors import NotFound
from vca.feedback.schema import candidate, dataset_snapshot, dialogue, round_
from vca.feedback.snapshot_files import read_manifest
from vca.feedback.store import Store, now
from vca.progress import Quiet

MP = pytest.MonkeyPatch


def digests(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.parquet")}


def test_a_pick_of_four_becomes_three_pairs_with_words_pictures_and_slots(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    seen, event = picked(store, ann, slot=2, prompt="a red heart")

    taken = take(store, monkeypatch)

    found = rows(taken.folder, "pairs")
    assert [row["rejected"] for row in found] == [slot for slot in seen.slots if slot != seen.slots[2]]
    assert sum(row["weight"] for row in found) == pytest.approx(1)
    for row in found:
        assert (row["chosen"], row["slot_chosen"], row["slots"]) == (seen.slots[2], 2, 4)
        assert (row["label"], row["rule"], row["prompt"]) == (1.0, "best_of_n", "a red heart")
        assert row["source_event_id"] == event.event_id
        assert row["event_timestamp"] == event.received_at
        assert store.objects.get(row["image_chosen"]) is not None
        assert row["excluded_reason"] is None
    manifest = taken.manifest
    assert (manifest.usable, manifest.people, manifest.events) == (3, 1, 1)
    assert manifest.newest == event.received_at
    assert manifest.slots[0].picks == (0, 0, 1, 0)
    (row,) = rows(taken.folder, "events")
    assert (row["event_id"], row["slot"], row["slots"], row["kind"]) == (event.event_id, 2, 4, "pick")
    assert (row["event_at"], row["received_at"]) == (event.received_at, event.received_at)
    assert row["shown_at"] == seen.shown_at


def test_with_nothing_new_it_is_the_same_snapshot(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    picked(store, ann)
    first, again = take(store, monkeypatch), take(store, monkeypatch)
    assert (first.new, again.new, again.snapshot_id) == (True, False, first.snapshot_id)
    picked(store, ann)
    later = take(store, monkeypatch)
    assert later.snapshot_id != first.snapshot_id
    assert len(snapshots.listed(store)) == 2
    assert [path.name for path in store.settings.snapshots.glob(".building*")] == []


def test_the_same_moment_gives_the_same_bytes_whatever_came_later(
    store: Store, tmp_path: Path, monkeypatch: MP
) -> None:
    ann, bob = willing(store), willing(store, "bob")
    for number in range(6):
        seen, _ = picked(store, [ann, bob][number % 2], slot=number % 4)
        if number == 3:
            say(store, bob, seen, "tie_good", 0, 1, 2)
    at = now()
    first = take(store, monkeypatch, as_of=at)
    one = digests(first.folder)
    shutil.rmtree(first.folder)  # it is rebuilt from the store alone
    seen, _ = picked(store, ann)
    say(store, ann, seen, "accept", 1)

    again = take(store, monkeypatch, as_of=at)

    assert again.new
    assert digests(again.folder) == one
    assert again.snapshot_id == first.snapshot_id


def test_a_copy_of_the_store_gives_the_same_bytes(tmp_path: Path, monkeypatch: MP) -> None:
    store = open_store(f"sqlite:///{tmp_path}/a/store.sqlite", tmp_path / "a")
    ann = willing(store)
    for slot in range(4):
        picked(store, ann, slot=slot)
    at = now()
    first = take(store, monkeypatch, as_of=at)
    store.close()
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("snapshots"))
    other = open_store(f"sqlite:///{tmp_path}/b/store.sqlite", tmp_path / "b")
    again = take(other, monkeypatch, as_of=at)
    other.close()
    assert again.folder != first.folder
    assert again.new
    assert digests(again.folder) == digests(first.folder)
    assert again.snapshot_id == first.snapshot_id


def test_a_moment_that_is_not_over_yet_is_refused(store: Store) -> None:
    with pytest.raises(SettingsError, match="at least 10 s ago"):
        snapshot.take(store, as_of=now() - timedelta(seconds=9), progress=Quiet())
    with pytest.raises(SettingsError, match="at least 10 s ago"):
        snapshot.take(store, as_of=datetime.max.replace(tzinfo=UTC), progress=Quiet())


def test_what_is_said_later_is_not_in_it(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    seen, event = picked(store, ann)
    at = now()
    say(store, ann, seen, "retract", supersedes=event.event_id)
    assert take(store, monkeypatch, as_of=at).manifest.usable == 3
    later = take(store, monkeypatch)
    assert later.manifest.usable == 0
    assert later.manifest.excluded_pairs == {"retracted": 3}


def test_a_round_that_is_not_done_by_then_waits(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    picked(store, ann)
    seen, _ = picked(store, ann)
    at = now()
    with store.database.writing() as connection:  # its last picture came later
        this = round_.c.round_id == seen.round_id
        connection.execute(sa.update(round_).where(this).values(completed_at=at + timedelta(microseconds=1)))
    assert take(store, monkeypatch, as_of=at).manifest.usable == 3
    assert take(store, monkeypatch).manifest.usable == 6


def test_a_retraction_marks_the_snapshots_that_hold_the_pair(store: Store, monkeypatch: MP) -> None:
    """Case 12."""
    ann = willing(store)
    _, event = picked(store, ann)
    first = take(store, monkeypatch)
    other = picked(store, willing(store, "bob"))
    say(store, ann, shown(store, ann), "retract", supersedes=event.event_id)  # sent from another dialogue

    second = take(store, monkeypatch)

    pairs = {row["source_event_id"]: row["excluded_reason"] for row in rows(second.folder, "pairs")}
    assert pairs[event.event_id] == "retracted"
    assert pairs[other[1].event_id] is None
    invalid = {one.snapshot_id: one.invalid for one in snapshots.listed(store)}
    assert invalid == {first.snapshot_id: "retracted", second.snapshot_id: None}
    assert snapshots.load(store, first.snapshot_id)[1] == first.manifest


def test_a_later_retraction_from_another_dialogue_is_not_in_it(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    _, event = picked(store, ann)
    elsewhere, at = shown(store, ann), now()
    say(store, ann, elsewhere, "retract", supersedes=event.event_id)
    assert take(store, monkeypatch, as_of=at).manifest.usable == 3
    assert take(store, monkeypatch).manifest.excluded_pairs == {"retracted": 3}


def test_a_retraction_of_what_was_excluded_marks_nothing(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    seen, event = picked(store, ann)
    with store.database.writing() as connection:
        connection.execute(sa.update(candidate).values(safety="unknown"))
    first = take(store, monkeypatch)
    assert first.manifest.excluded_pairs == {"unsafe": 3}
    say(store, ann, seen, "retract", supersedes=event.event_id)
    take(store, monkeypatch)
    assert [one.invalid for one in snapshots.listed(store)] == [None, None]


def test_one_that_is_marked_as_erased_does_not_load(store: Store, monkeypatch: MP) -> None:
    picked(store, willing(store))
    taken = take(store, monkeypatch)
    with store.database.writing() as connection:
        connection.execute(sa.update(dataset_snapshot).values(invalid_at=now(), invalid_reason="erased"))
    with pytest.raises(ArtifactError, match="erased since"):
        snapshots.load(store, taken.snapshot_id)


def test_without_consent_there_are_no_words_no_pictures_and_no_events(store: Store, monkeypatch: MP) -> None:
    """Case 15: withdrawn in the middle of a dialogue, which goes on."""
    ann = willing(store)
    seen, _ = picked(store, ann, prompt="a secret wish")
    store.agree(ann, {"train": False})
    say(store, ann, seen, "pick", 1)

    taken = take(store, monkeypatch)

    assert taken.manifest.excluded_pairs == {"no_consent": 6}
    assert taken.manifest.excluded_dialogues == {"no_consent": 1}
    assert (taken.manifest.usable, taken.manifest.people, taken.manifest.events) == (0, 0, 0)
    for row in rows(taken.folder, "pairs"):
        assert row["prompt"] is None
        assert row["image_chosen"] is None
    assert rows(taken.folder, "dialogues")[0]["steps"] is None
    assert not any(b"secret wish" in data for data in digests(taken.folder).values())
    store.agree(ann, {"train": True})
    assert take(store, monkeypatch).manifest.pairs == {f"best_of_n/{rules.split_of(dialogue_of(store))}": 3}


def dialogue_of(store: Store) -> str:
    with store.database.reading() as connection:
        return str(connection.execute(sa.select(dialogue.c.dialogue_id)).scalar_one())


def test_an_erasure_while_it_is_built_leaves_nothing_of_it(store: Store, monkeypatch: MP) -> None:
    """Case 13."""
    ann = willing(store)
    picked(store, ann)
    derive = snapshot._Build._derive

    def erased_meanwhile(self: object, batch: object) -> None:
        derive(self, batch)  # type: ignore[arg-type]
        erasure.begin(store, subject_id=ann.subject_id)

    monkeypatch.setattr(snapshot._Build, "_derive", erased_meanwhile)
    with pytest.raises(ArtifactError, match="erased while"):
        take(store, monkeypatch)
    assert snapshots.listed(store) == []
    assert [path.name for path in store.settings.snapshots.iterdir()] == [".lock"]


def test_a_snapshot_of_somebody_who_was_erased_since_does_not_load(
    store: Store, tmp_path: Path, monkeypatch: MP
) -> None:
    ann, bob = willing(store), willing(store, "bob")
    picked(store, ann)
    with_ann = take(store, monkeypatch)
    store.agree(ann, {"train": False})
    picked(store, bob)
    with_both = take(store, monkeypatch)
    erasure.begin(store, subject_id=bob.subject_id)
    assert snapshots.load(store, with_ann.snapshot_id)
    with pytest.raises(ArtifactError, match="erased since"):
        snapshots.load(store, with_both.snapshot_id)
    erasure.erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")

    with pytest.raises(ArtifactError, match="erased since"):
        snapshots.load(store, with_ann.snapshot_id)
    with pytest.raises(ArtifactError, match="erased since"):
        read_manifest(with_ann.folder)
    assert digests(with_ann.folder) == {}
    with pytest.raises(NotFound):
        snapshots.load(store, "0" * 20)


@pytest.mark.parametrize("damage", ["missing", "changed", "manifest"])
def test_a_damaged_snapshot_does_not_load(store: Store, monkeypatch: MP, damage: str) -> None:
    picked(store, willing(store))
    taken = take(store, monkeypatch)
    file = taken.folder / "pairs/00000.parquet"
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    else:
        (taken.folder / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="take another"):
        snapshots.load(store, taken.snapshot_id)
    assert take(store, monkeypatch).new  # and it is made again
    assert snapshots.load(store, taken.snapshot_id)


def test_one_person_gives_at_most_the_cap(store: Store, monkeypatch: MP) -> None:
    """Case 17 in small; the benchmark's size in test_judging."""
    ann, bob = willing(store), willing(store, "bob")
    for slot in range(6):
        picked(store, ann, slot=slot % 4)
    picked(store, bob)
    limits = store.settings.rules.model_copy(update={"subject_floor": 6, "subject_share": 0.01})
    store.settings = store.settings.model_copy(update={"rules": limits})

    taken = take(store, monkeypatch)

    by: dict[str, int] = defaultdict(int)
    for row in rows(taken.folder, "pairs"):
        by[row["subject_id"]] += row["excluded_reason"] is None
    assert by == {ann.subject_id: 6, bob.subject_id: 3}
    assert taken.manifest.excluded_pairs == {"subject_cap": 12}


def test_bad_pictures_are_excluded_with_their_reason(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    seen, _ = picked(store, ann)
    chosen, unsafe, lost, twin = seen.slots
    with store.database.writing() as connection:
        hashes = {row[0]: row[1] for row in connection.execute(sa.select(candidate.c.candidate_id, candidate.c.phash))}
        digest = connection.execute(
            sa.select(candidate.c.image_sha256).where(candidate.c.candidate_id == lost)
        ).scalar_one()
        near = f"{int(hashes[chosen], 16) ^ 0b1111:016x}"
        for name, values in ((unsafe, {"safety": "unknown"}), (twin, {"phash": near})):
            connection.execute(sa.update(candidate).where(candidate.c.candidate_id == name).values(values))
    store.objects.delete(digest)

    found = {row["rejected"]: row["excluded_reason"] for row in rows(take(store, monkeypatch).folder, "pairs")}

    assert found == {unsafe: "unsafe", lost: "broken_image", twin: "near_duplicate"}


def test_new_people_wait_until_their_pairs_count(store: Store, monkeypatch: MP) -> None:
    picked(store, willing(store))
    limits = store.settings.rules.model_copy(update={"quarantine_h": 24.0})
    store.settings = store.settings.model_copy(update={"rules": limits})
    assert take(store, monkeypatch).manifest.excluded_pairs == {"new_subject": 3}


def test_a_way_leads_from_the_first_words_to_the_accepted_picture(store: Store, monkeypatch: MP) -> None:
    ann = willing(store)
    dialogue_id, first = begun(store, ann, "a heart")
    drawn(store)
    seen = events.present(store, ann, round_id=first)
    say(store, ann, seen, "pick", 1)
    second, dead_end = new_id(), new_id()
    for round_id, slot, words in (
        (dead_end, 0, Words(prompt="a blue heart", critique="make it blue")),
        (second, 1, Words(prompt="a red heart", critique="make it red")),
    ):
        request = RoundRequest(
            round_id=round_id, words=words, parent_round_id=first, parent_candidate_id=seen.slots[slot]
        )
        dialogues.ask(store, ann, dialogue_id=dialogue_id, request=request)
        drawn(store)
    last = events.present(store, ann, round_id=second)
    end = say(store, ann, last, "accept", 3)

    taken = take(store, monkeypatch)

    (way,) = rows(taken.folder, "dialogues")
    one, two = way["steps"]
    with store.database.reading() as connection:
        every = connection.execute(sa.select(candidate.c.candidate_id, candidate.c.image_sha256))
        images = {row[0]: row[1] for row in every}
    assert one == {
        "round": 1, "prompt": "a heart", "critique": "", "image": None, "target": images[seen.slots[1]]
    }  # fmt: skip
    assert two == {
        "round": 2, "prompt": "a red heart", "critique": "make it red",
        "image": images[seen.slots[1]], "target": images[last.slots[3]],
    }  # fmt: skip
    assert (way["leaf"], way["accepted"], way["source_event_id"]) == (last.slots[3], True, end.event_id)
    assert way["excluded_reason"] is None


def test_a_dialogue_in_two_splits_fails_the_build(store: Store, monkeypatch: MP) -> None:
    """Case 20."""
    picked(store, willing(store))
    sides = iter(["train", "test"] * 10)
    monkeypatch.setattr(rules, "split_of", lambda dialogue_id: next(sides))
    with pytest.raises(ArtifactError, match="two splits"):
        take(store, monkeypatch)
