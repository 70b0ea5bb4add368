from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import data_layouts as lay
import pytest
import sqlalchemy as sa
from stores import open_store

from vca.data.emoji.catalogue import load_catalogue
from vca.data.settings import DataSettings
from vca.errors import DataError, SettingsError
from vca.feedback import importing
from vca.feedback.dialogues import open_words
from vca.feedback.importing import Imported
from vca.feedback.schema import (
    candidate,
    consent_event,
    feedback_event,
    metadata,
    outbox,
    presentation,
    round_,
    subject,
)
from vca.feedback.store import Person, Store
from vca.progress import Quiet
from vca.safety.checker import Checker, load
from vca.safety.settings import SafetySettings

SWIMMER = "twemoji/1f3ca-1f3fd-200d-2642"  # a man's bare chest: 0.24


@pytest.fixture(scope="session")
def unchecked() -> Checker:
    return load(SafetySettings(classifier="none"))


def imported(store: Store, kind: Any, path: Path, checker: Checker, **more: Any) -> Imported:
    return importing.run(
        store,
        kind=kind,
        path=path,
        data=DataSettings(),
        checker=checker,
        quarantine=path.parent / "quarantine.jsonl",
        progress=Quiet(),
        **more,
    )


def everything(store: Store) -> dict[str, list[Any]]:
    """Every row of every table."""
    with store.database.reading() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)).all()))
            for table in metadata.sorted_tables
        }


def person_of(store: Store, name: str) -> Person:
    return store.person(f"import:{name}", kind="import")


def comparisons(store: Store, name: str) -> Counter[tuple[Any, ...]]:
    """(prompt, kind, digest of the first picture, of the second), read back as the snapshot reads them."""
    person = person_of(store, name)
    with store.database.reading() as connection:
        images = {one.candidate_id: one.image_sha256 for one in connection.execute(sa.select(candidate))}
        rounds = connection.execute(sa.select(round_.c.round_id, round_.c.words_enc)).all()
        words = {round_id: open_words(person, round_id, sealed).prompt for round_id, sealed in rounds}
        events = connection.execute(
            sa.select(feedback_event).where(feedback_event.c.subject_id == person.subject_id)
        ).all()
    return Counter((words[event.round_id], event.kind, *(images[name] for name in event.target)) for event in events)


def file_digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def labels(root: Path, entries: list[dict[str, Any]]) -> Path:
    """A label file; picture N is images/N.png."""
    for number in {image for entry in entries for image in entry["images"]}:
        lay.put(root / f"images/{number}.png", lay.image_bytes(number))
    records = [{**entry, "images": [f"images/{number}.png" for number in entry["images"]]} for entry in entries]
    return lay.put(root / "preferences.json", records)


def test_the_label_file_becomes_events_that_say_the_same(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    path = lay.preferences(tmp_path / "source", count=6)

    count = imported(store, "preferences", path, unchecked)

    assert count == Imported(new=6, known=0, filtered={}, quarantined={})
    images = path.parent / "images"
    assert comparisons(store, "preferences") == Counter(
        (f"a green house number {n}", "pair", file_digest(images / f"{n}a.png"), file_digest(images / f"{n}b.png"))
        for n in range(6)
    )
    assert store.objects.get(file_digest(images / "3a.png")) == (images / "3a.png").read_bytes()
    with store.database.reading() as connection:
        (who,) = connection.execute(sa.select(subject)).all()
        (agreed,) = connection.execute(sa.select(consent_event)).all()
        assert connection.execute(sa.select(outbox)).all() == []  # features are of people
        pictures = connection.execute(sa.select(candidate)).all()
        done = connection.execute(sa.select(round_)).all()
    assert who.kind == "import"
    assert (agreed.scope, agreed.granted, agreed.policy_version) == ("train", True, "import")
    assert all((one.state, one.safety, one.width, len(one.phash)) == ("ready", "pass", 48, 16) for one in pictures)
    assert all(one.status == "done" and one.completed_at is not None for one in done)


def test_the_order_shown_tells_nothing_of_which_is_better(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    imported(store, "preferences", lay.preferences(tmp_path / "source", count=60), unchecked)

    with store.database.reading() as connection:
        rows = connection.execute(
            sa.select(presentation.c.slots, feedback_event.c.target).join(
                feedback_event, feedback_event.c.presentation_id == presentation.c.presentation_id
            )
        ).all()
    first = sum(row.slots[0] == row.target[0] for row in rows)
    assert 12 <= first <= 48  # six standard deviations


@pytest.mark.parametrize("tables", [False, True])
def test_a_ranking_becomes_its_comparisons(store: Store, tmp_path: Path, unchecked: Checker, tables: bool) -> None:
    root = lay.image_reward_db(tmp_path / "db", prompts=3, images=4, tables=tables)

    count = imported(store, "image_reward", root, unchecked, name="db")

    assert count.new == 3 * 6
    images = root / "images/train/train_1"
    expected = Counter(
        (
            f"painting of a lighthouse number {prompt}",
            "pair",
            file_digest(images / f"{prompt:04d}-{better}.webp"),
            file_digest(images / f"{prompt:04d}-{worse}.webp"),
        )
        for prompt in range(3)
        for better in range(4)
        for worse in range(better + 1, 4)
    )
    assert comparisons(store, "db") == expected
    with store.database.reading() as connection:
        places = connection.execute(sa.select(candidate.c.round_id, candidate.c.idx)).all()
    assert len({place.round_id for place in places}) == 3
    assert sorted(place.idx for place in places) == sorted([0, 1, 2, 3] * 3)


def test_equal_ranks_say_nothing(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    root = lay.image_reward_repository(tmp_path / "repository")
    assert imported(store, "image_reward", root, unchecked).new == 2
    paths = [root / f"part-005658/images/0040/{number}.webp" for number in range(3)]
    best = file_digest(paths[1])
    assert comparisons(store, "image_reward") == Counter(
        [("a cute cat", "pair", best, file_digest(paths[number])) for number in (0, 2)]
    )


def test_importing_again_changes_nothing(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    path = lay.preferences(tmp_path / "source", count=5)
    assert imported(store, "preferences", path, unchecked).new == 5
    before = everything(store)

    assert imported(store, "preferences", path, unchecked) == Imported(new=0, known=5, filtered={}, quarantined={})

    assert everything(store) == before


def test_a_file_that_grew_brings_what_is_new(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    imported(store, "preferences", lay.preferences(tmp_path / "source", count=3), unchecked)
    count = imported(store, "preferences", lay.preferences(tmp_path / "source", count=5), unchecked)
    assert (count.new, count.known) == (2, 3)


@pytest.mark.parametrize("seed", range(4))
def test_any_label_file(store: Store, tmp_path: Path, unchecked: Checker, seed: int, monkeypatch: Any) -> None:
    """Whatever is compared in whatever order: every record is one event, or is counted with its reason."""
    draw = random.Random(seed)
    monkeypatch.setattr(importing, "BATCH_PAIRS", draw.choice([1, 2, 7, 256]))
    monkeypatch.setattr(importing, "BATCH_BYTES", draw.choice([1, 2000, 2**26]))
    entries: list[dict[str, Any]] = []
    for number in range(40):
        entry: dict[str, Any] = {
            "prompt": draw.choice(["a boat", "A  boat", "a house"]),
            "images": [draw.randrange(6), draw.randrange(6)],
            "labels": draw.choice([[1, 0], [0, 1], [0.5, 0.5]]),
            "pair_id": f"p{draw.choice([number, draw.randrange(40)])}",
        }
        if draw.random() < 0.7:
            entry["dialogue_id"] = f"d{draw.randrange(3)}"
        entries.append(entry)
    path = labels(tmp_path / "source", entries)

    count = imported(store, "preferences", path, unchecked)

    expected: dict[str, tuple[Any, ...]] = {}
    refused: Counter[str] = Counter()
    known = 0
    for entry in entries:
        first, second = entry["images"] if entry["labels"][0] else entry["images"][::-1]
        said = (entry["prompt"], first, second, max(entry["labels"]))
        if expected.get(entry["pair_id"]) == said:
            known += 1
        elif entry["pair_id"] in expected:
            refused["duplicate_id"] += 1
        elif first == second:
            refused["wrong_label"] += 1
        else:
            expected[entry["pair_id"]] = said
    assert (count.new, count.known, count.quarantined) == (len(expected), known, dict(+refused))
    told = Counter((kind, a, b) for (_, kind, a, b), n in comparisons(store, "preferences").items() for _ in range(n))
    assert told == Counter(
        ("tie_good" if label == 0.5 else "pair", *(sha256(lay.image_bytes(n)).hexdigest() for n in (first, second)))
        for _, first, second, label in expected.values()
    )
    with store.database.reading() as connection:
        rounds = connection.execute(sa.select(candidate.c.round_id, candidate.c.image_sha256)).all()
    assert len(rounds) == len(set(rounds))  # a picture is in a round once


def test_bad_records_are_counted_and_listed(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    path = lay.preferences(tmp_path / "source", count=6)
    records = json.loads(path.read_text())
    records[0]["labels"] = [1, 1]
    records[1]["prompt"] = "x" * 4001
    (path.parent / "images/2a.png").unlink()
    lay.put(path.parent / "images/3b.png", b"no picture")
    lay.put(path, records)

    count = imported(store, "preferences", path, unchecked)

    assert count.new == 2
    assert count.quarantined == {"broken_image": 1, "missing_file": 1, "wrong_label": 1, "wrong_type": 1}
    lines = [json.loads(line) for line in (path.parent / "quarantine.jsonl").read_text().splitlines()]
    assert Counter(line["reason"] for line in lines) == count.quarantined
    assert {line["uri"] for line in lines} == {
        "preferences.json[0]",
        "pair-1",
        "source/images/2a.png",
        "source/images/3b.png",
    }


@pytest.mark.parametrize(
    "other", [{"prompt": "a house"}, {"images": [2, 1]}, {"images": [1, 3]}, {"images": [3, 2]}, {"labels": [0.5, 0.5]}]
)
def test_another_record_under_a_known_id_is_refused(
    store: Store, tmp_path: Path, unchecked: Checker, other: dict[str, Any]
) -> None:
    """Two files that number their records alike must not hide each other."""
    entry = {"pair_id": "7", "prompt": "a boat", "images": [1, 2], "labels": [1, 0]}
    imported(store, "preferences", labels(tmp_path / "one", [entry]), unchecked)
    path = labels(tmp_path / "other", [{**entry, **other}])

    with pytest.raises(DataError, match="duplicate_id 1"):
        imported(store, "preferences", path, unchecked)
    assert "--name" in (path.parent / "quarantine.jsonl").read_text()
    assert imported(store, "preferences", path, unchecked, name="other").new == 1


def test_consent_that_was_taken_back_stays_so(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    path = lay.preferences(tmp_path / "source", count=2)
    imported(store, "preferences", path, unchecked)
    person = person_of(store, "preferences")
    assert store.consent(person)["train"]
    store.agree(person, {"train": False})

    imported(store, "preferences", path, unchecked)

    assert not store.consent(person)["train"]


def test_what_the_safety_filter_hides_is_not_kept(store: Store, tmp_path: Path) -> None:
    path = lay.preferences(tmp_path / "source", count=4)
    swimmer = load_catalogue().by_id[SWIMMER].png
    lay.put(path.parent / "images/1b.png", swimmer)
    records = json.loads(path.read_text())
    records[2]["prompt"] = "gore"
    lay.put(path, records)

    count = imported(store, "preferences", path, load(SafetySettings(image_threshold=0.2)))

    assert count == Imported(new=2, known=0, filtered={"unsafe_image": 1, "unsafe_prompt": 1}, quarantined={})
    stored = [file.name for file in (tmp_path / "pictures").rglob("*") if file.is_file()]
    assert sha256(swimmer).hexdigest() not in stored
    assert len(stored) == 5  # of two pairs, and the better one of the swimmer's


def test_pictures_are_kept_as_rgb_without_what_is_hidden_in_them(
    store: Store, tmp_path: Path, unchecked: Checker
) -> None:
    path = lay.preferences(tmp_path / "source", count=1)
    lay.put(path.parent / "images/0a.png", lay.image_bytes(0, mode="P"))
    imported(store, "preferences", path, unchecked)
    (_, _, better, worse), *_ = comparisons(store, "preferences")
    assert better != file_digest(path.parent / "images/0a.png")
    assert store.objects.get(better) is not None
    assert worse == file_digest(path.parent / "images/0b.png")


@pytest.mark.parametrize(("content", "error"), [([], "no comparison can be used"), ({}, "invalid_json 1")])
def test_nothing_to_import(store: Store, tmp_path: Path, unchecked: Checker, content: Any, error: str) -> None:
    path = lay.put(tmp_path / "source/preferences.json", content)
    with pytest.raises(DataError, match=error):
        imported(store, "preferences", path, unchecked)


def test_a_name_too_long(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    path = lay.preferences(tmp_path / "source", count=1)
    with pytest.raises(SettingsError, match="58 characters, allowed are 57"):
        imported(store, "preferences", path, unchecked, name="x" * 58)
    assert imported(store, "preferences", path, unchecked, name="x" * 57).new == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from stores import open_store
from vca.data.settings import DataSettings
from vca.feedback import importing
from vca.progress import Quiet
from vca.safety.checker import load
from vca.safety.settings import SafetySettings

url, folder, path, survives = sys.argv[1:]
importing.BATCH_PAIRS = 2
calls, insert = [], importing.insert_missing

def insert_or_die(*given):
    calls.append(given)
    if len(calls) > int(survives):
        os.kill(os.getpid(), signal.SIGKILL)
    insert(*given)

importing.insert_missing = insert_or_die
store = open_store(url, Path(folder))
importing.run(store, kind="preferences", path=Path(path), data=DataSettings(),
              checker=load(SafetySettings(classifier="none")), quarantine=Path(folder) / "q", progress=Quiet())
"""


def test_killed_anywhere_the_same_command_goes_on(store: Store, tmp_path: Path, unchecked: Checker) -> None:
    path = lay.preferences(tmp_path / "source", count=6)
    paths = os.pathsep.join([str(Path(importing.__file__).parents[2]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}
    url = store.database.engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    seen = []
    for survives in (2, 9):  # dialogues and rounds of the first batch; all but the event of the second
        command = [sys.executable, "-c", KILLED, url, str(tmp_path), str(path), str(survives)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        rows = everything(store)
        seen.append((len(rows["round"]), len(rows["candidate"]), len(rows["feedback_event"])))
    assert seen == [(0, 0, 0), (2, 4, 2)]  # whole batches

    count = imported(store, "preferences", path, unchecked)

    assert (count.new, count.known) == (4, 2)
    assert len(comparisons(store, "preferences")) == 6
    undisturbed = open_store(f"sqlite:///{tmp_path}/other.sqlite", tmp_path)
    imported(undisturbed, "preferences", path, unchecked)
    with store.database.reading() as one, undisturbed.database.reading() as other:
        for table in (round_, candidate, presentation, feedback_event):
            key = table.primary_key.columns
            assert set(one.execute(sa.select(*key)).all()) == set(other.execute(sa.select(*key)).all())
    undisturbed.close()


def test_the_command_imports_and_says_so(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vca.cli_feedback import app

    path = lay.preferences(tmp_path / "source", count=3)
    (path.parent / "images/2a.png").unlink()
    sets = [f"feedback.url=sqlite:///{tmp_path}/s.sqlite", f"feedback.objects={tmp_path}/pictures"]
    sets += [f"feedback.key={tmp_path}/master.key", "serving.safety.classifier=none"]
    options = [part for one in sets for part in ("--set", one)]
    command = ["import", "--kind", "preferences", "--quarantine", str(tmp_path / "q/bad.jsonl"), str(path), *options]

    done = CliRunner().invoke(app, command)

    assert done.exit_code == 0, done.output
    assert "comparisons: 2 new, 0 known, missing_file 1" in done.output
    assert "bad.jsonl" in done.output
    assert len((tmp_path / "q/bad.jsonl").read_text().splitlines()) == 1
