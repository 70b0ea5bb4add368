from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import sqlalchemy as sa
from people import picked, take, willing
from stores import begun, drawn, new_id, open_store, picture, say, shown

from vca.errors import ArtifactError
from vca.feedback import dialogues, erasure, events, loop, queue, sharing, snapshot, snapshots
from vca.feedback.dialogues import RoundRequest, Words
from vca.feedback.erasure import STEPS, erase, subject_of
from vca.feedback.errors import Conflict, NotFound
from vca.feedback.queue import Drawn
from vca.feedback.schema import consent_event, erasure_request, metadata, store_state
from vca.feedback.snapshot_files import read_manifest, read_rows
from vca.feedback.store import Person, Store, erasure_epoch

SECRET = "Violet-Zeppelin-0417"  # in whatever she wrote


def told_everywhere(store: Store, person: Person) -> bytes:
    """Her words in every place where the store takes words; a picture that is hers alone."""
    store.agree(person, {"train": True})
    dialogue_id, round_id = begun(store, person, f"{SECRET} prompt")
    drawn(store, first_seed=4170)
    seen = events.present(store, person, round_id=round_id)
    say(store, person, seen, "critique", text=f"{SECRET} critique")
    say(store, person, seen, "report", 0, body={"reason": "other"}, text=f"{SECRET} report")
    say(store, person, seen, "pick", 1)
    words = Words(prompt=f"{SECRET} again", prompt_refined=SECRET, critique=SECRET, keep=(SECRET,), notice=SECRET)
    request = RoundRequest(
        round_id=new_id(), words=words, parent_round_id=round_id, parent_candidate_id=seen.slots[1], strength=0.5
    )
    dialogues.ask(store, person, dialogue_id=dialogue_id, request=request)
    drawn(store)
    sharing.share(store, person, dialogue_id=dialogue_id, days=7)
    events.present(store, person, round_id=round_id, again=True)
    return picture(4170)


def trained_on(runs: Path, snapshot: str) -> None:
    """A run's folder, and the cache that it shares files with."""
    watermark = f"emoji@0 feedback@{snapshot}"
    for data in (runs / ".cache/data/k1", runs / "r1/data"):
        data.mkdir(parents=True)
        (data / "pairs.parquet").write_text(SECRET)
        (data / "manifest.json").write_text(json.dumps({"watermark": watermark}))
        (data / "stage.json").write_text(json.dumps({"stage": "data", "digest": f"d-{snapshot}"}))
    (runs / "r1/reward").mkdir()
    (runs / "r1/reward/adapter.json").write_text(json.dumps({"data_watermark": watermark}))
    evaluation = runs / "r1/evaluation"
    (evaluation / "pictures").mkdir(parents=True)
    (evaluation / "pictures/00.png").write_text(SECRET)
    (evaluation / "evaluation.json").write_text(SECRET)
    (evaluation / "policy").mkdir()
    (evaluation / "policy/adapter.json").write_text(json.dumps({"watermark": watermark}))
    (evaluation / "stage.json").write_text(json.dumps({"made_from": {"inputs": {"data": f"d-{snapshot}"}}}))
    (runs / "r1/report.json").write_text(json.dumps({"data": {"watermark": watermark}}))
    (runs / "r1/report.html").write_text(SECRET)
    attempt = runs / ".cache/data/k2.partial/result"
    attempt.mkdir(parents=True)
    (attempt / "pairs.parquet").write_text(SECRET)


def files_with(folder: Path, *wanted: bytes) -> list[str]:
    """Files below `folder` that hold any of these bytes."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and any(one in path.read_bytes() for one in wanted)
    ]


def test_nothing_of_an_erased_person_is_left_in_any_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    hers = told_everywhere(store, ann)
    his = shown(store, bob, "red heart")
    say(store, bob, his, "pick", 0)
    store.agree(bob, {"train": True})
    taken = take(store, monkeypatch)
    left = taken.folder.with_name(".building-0")  # of an attempt that was killed
    shutil.copytree(taken.folder, left)
    shutil.copytree(taken.folder, taken.folder.with_name("not-registered"))
    trained_on(tmp_path / "runs", taken.snapshot_id)
    with store.database.reading() as connection:
        key = connection.execute(sa.text("SELECT dek_wrapped FROM subject WHERE auth_hmac = :a"), {"a": _auth(store)})
        wrapped = bytes(key.scalar_one())
        sealed = [bytes(row) for row in connection.execute(sa.text("SELECT words_enc FROM round")).scalars()]
    assert any(SECRET in str(row["prompt"]) for row in read_rows(taken.folder, "pairs"))
    assert len(files_with(tmp_path, SECRET.encode())) > 5
    assert files_with(tmp_path, hers)

    done = erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")

    his_words = {bytes(row) for row in rows(store, "SELECT words_enc FROM round")}
    wanted = [SECRET.encode(), hers, wrapped, *(one for one in sealed if one not in his_words)]
    assert files_with(tmp_path, *wanted) == []
    assert done.completed_at is not None
    assert set(done.receipts) == {"database", *STEPS}
    assert done.snapshots == (taken.snapshot_id,)
    assert done.receipts["snapshots"]["unfinished"] == ["not-registered"]
    assert [Path(one["folder"]).name for one in done.releases] == ["policy", "reward"]
    assert done.due_at - done.requested_at == erasure.DUE
    assert json.loads((taken.folder / "manifest.json").read_text())["erased"] is True
    assert [path.name for path in store.settings.snapshots.rglob("*.parquet")] == []
    with pytest.raises(ArtifactError, match="erased since"):
        snapshots.load(store, taken.snapshot_id)
    again = take(store, monkeypatch)  # the others can be trained on again
    assert (again.new, again.manifest.people) == (True, 1)
    # and Bob's is all there
    assert store.objects.get(_digest_of(store, bob, his.slots[0])) is not None
    assert len(rows(store, "SELECT event_id FROM feedback_event")) == 1


def test_a_snapshot_that_is_registered_while_an_erasure_waits_for_its_turn_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = willing(store), willing(store, "bob")
    picked(store, ann)
    picked(store, bob)
    alone, folders = snapshot._alone, []

    def turn(place: Path) -> AbstractContextManager[None]:
        monkeypatch.setattr(snapshot, "_alone", alone)
        folders.append(take(store, monkeypatch).folder)
        return alone(place)

    monkeypatch.setattr(snapshot, "_alone", turn)
    done = erase(store, subject_id=ann.subject_id, runs=tmp_path)

    assert done.receipts["snapshots"]["unfinished"] == []
    assert [read_manifest(folder).people for folder in folders] == [1]


def test_a_run_that_was_going_on_is_cleared_when_it_ends(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = willing(store)
    picked(store, ann)
    taken = take(store, monkeypatch)
    settled = {"run": tmp_path / "runs/r1", "snapshot_id": taken.snapshot_id}
    trained_on(tmp_path / "runs", taken.snapshot_id)
    assert loop.remember(store.settings, **settled) == []
    assert files_with(tmp_path / "runs", SECRET.encode()) != []
    erase(store, subject_id=ann.subject_id, runs=tmp_path / "none")  # as if they were written afterwards

    assert len(loop.remember(store.settings, **settled)) > 3

    assert files_with(tmp_path / "runs", SECRET.encode()) == []
    assert (tmp_path / "runs/r1/reward/adapter.json").exists()


def test_snapshots_are_found_wherever_the_eraser_stands(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = willing(store)
    picked(store, ann)
    store.settings = store.settings.model_copy(update={"snapshots": Path("snapshots of a run")})
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    taken = take(store, monkeypatch)
    monkeypatch.chdir(tmp_path / "elsewhere")
    erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "here")
    assert list(Path("snapshots of a run").rglob("*.parquet")) == []
    with pytest.raises(ArtifactError, match="erased since"):
        read_manifest(taken.folder)


def test_no_row_refers_to_the_person_any_more(store: Store) -> None:
    ann = store.person("ann")
    told_everywhere(store, ann)
    before = len(metadata.sorted_tables)

    erase(store, subject_id=ann.subject_id)

    left = {table.name: len(rows(store, f"SELECT * FROM {table.name}")) for table in metadata.sorted_tables}
    assert before == len(left)
    assert {name: count for name, count in left.items() if count} == {"erasure_request": 1, "store_state": 1}
    assert "todo" not in erasure.receipt(store, subject_id=ann.subject_id).receipts
    (request,) = rows(store, "SELECT receipts FROM erasure_request")
    assert "pictures" not in (request if isinstance(request, dict) else json.loads(request))["todo"]


def test_a_second_erasure_answers_with_the_receipts(store: Store) -> None:
    ann = store.person("ann")
    told_everywhere(store, ann)
    with store.database.reading() as connection:
        epoch = erasure_epoch(connection)

    first = erase(store, subject_id=ann.subject_id)
    second = erase(store, subject_id=ann.subject_id)

    assert first == second
    with store.database.reading() as connection:
        assert erasure_epoch(connection) == epoch + 1
    with pytest.raises(NotFound):
        erase(store, subject_id=new_id())
    with pytest.raises(NotFound):
        subject_of(store, "ann")
    with pytest.raises(NotFound):
        store.known(ann.subject_id)
    assert store.person("ann").subject_id != ann.subject_id


def test_a_picture_that_somebody_else_has_too_stays(store: Store) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    for person in (ann, bob):
        begun(store, person)
        drawn(store, first_seed=7)

    done = erase(store, subject_id=ann.subject_id)

    assert done.receipts["pictures"]["kept_for_others"] == 4
    assert store.objects.get(_sha(picture(7))) == picture(7)
    assert erase(store, subject_id=bob.subject_id).receipts["pictures"]["deleted"] == 4
    assert store.objects.get(_sha(picture(7))) is None


def test_only_snapshots_with_the_person_become_invalid(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = store.person("bob")
    store.agree(bob, {"train": True})
    say(store, bob, shown(store, bob), "pick", 0)
    without = take(store, monkeypatch)
    ann = store.person("ann")
    told_everywhere(store, ann)
    with_her = take(store, monkeypatch)
    trained_on(tmp_path / "runs", without.snapshot_id)
    trained_on(tmp_path / "other", f"{with_her.snapshot_id}0")  # another name that begins alike
    snapshots.record_run(store, run_id="r0", snapshot_id=with_her.snapshot_id, folder=Path("/elsewhere"))

    done = erase(store, subject_id=ann.subject_id, runs=tmp_path)

    snapshots.load(store, without.snapshot_id)
    assert [one.invalid for one in snapshots.listed(store)] == ["erased", None]
    for runs in ("runs", "other"):
        assert (tmp_path / runs / "r1/data/pairs.parquet").exists()
        assert (tmp_path / runs / "r1/report.html").exists()
    assert done.releases == ({"run": "r0", "folder": "/elsewhere", "snapshots": [with_her.snapshot_id]},)


def test_who_is_erased_while_a_snapshot_is_taken_is_not_in_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = store.person("ann")
    told_everywhere(store, ann)
    derive = snapshot._Build._derive

    def meanwhile(build: snapshot._Build, batch: list) -> None:  # type: ignore[type-arg]
        derive(build, batch)
        erasure.begin(store, subject_id=ann.subject_id)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot._Build, "_derive", meanwhile)
        with pytest.raises(ArtifactError, match="erased while"):
            take(store, patch)
    erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")

    assert files_with(tmp_path, SECRET.encode()) == []
    assert take(store, monkeypatch).manifest.usable == 0


def test_who_is_erased_while_they_write_finds_nothing(store: Store) -> None:
    ann = store.person("ann")
    _, round_id = begun(store, ann)
    job = queue.claim(store, worker="w")
    assert job is not None
    erase(store, subject_id=ann.subject_id)

    with pytest.raises(NotFound):
        begun(store, ann)
    with pytest.raises(NotFound):
        store.agree(ann, {"train": True})
    with pytest.raises(NotFound):
        events.present(store, ann, round_id=round_id)
    late = Drawn(state="ready", safety="pass", image_sha256=store.objects.put(picture(1)))
    with pytest.raises(Conflict):
        queue.put(store, round_id=round_id, worker="w", candidate_id=job.waiting[0][0], drawn=late)
    erasure.discard(store, [_sha(picture(1))])
    assert store.objects.get(_sha(picture(1))) is None
    assert queue.claim(store, worker="w") is None


def test_consent_taken_back_is_no_erasure(store: Store) -> None:
    ann = store.person("ann")
    told_everywhere(store, ann)
    counts = {table.name: len(_table(store, table)) for table in metadata.sorted_tables}

    store.agree(ann, {"train": False})

    counts["consent_event"] += 1
    assert counts == {table.name: len(_table(store, table)) for table in metadata.sorted_tables}


def test_a_very_long_dialogue_is_erased_too(store: Store) -> None:
    ann = store.person("ann")
    begun(store, ann)
    with store.database.writing() as connection:
        first = dict(connection.execute(sa.text("SELECT * FROM round")).one()._mapping)
        parent = first["round_id"]
        for depth in range(2, 1200):  # SQLite nests 1000 cascades
            made = new_id()
            made = made.replace("-", "") if store.database.sqlite else made
            row = {**first, "round_id": made, "parent_round_id": parent, "depth": depth}
            columns = ", ".join(row)
            connection.execute(sa.text(f"INSERT INTO round ({columns}) VALUES (:{', :'.join(row)})"), row)
            parent = made

    erase(store, subject_id=ann.subject_id)

    assert rows(store, "SELECT round_id FROM round") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from people import picked, take, willing
from stores import open_store
from vca.feedback import erasure

url, folder, subject, point = sys.argv[1:]
store = open_store(url, Path(folder))

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(step):
    def run(work):
        found = step(work)
        die()
    return run

if point == "begun":
    erasure.finish = die
elif point == "before commit":
    erasure.new_id = die  # of the request, which is written last
elif point.startswith("in "):
    erasure.STEPS[point[3:]] = after(erasure.STEPS[point[3:]])
elif point == "between pictures":
    delete, done = store.objects.delete, []
    store.objects.delete = lambda digest: die() if done else done.append(delete(digest))
erasure.erase(store, subject_id=subject, runs=Path(folder) / "runs")
"""


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = store.person("ann")
    hers = told_everywhere(store, ann)
    trained_on(tmp_path / "runs", take(store, monkeypatch).snapshot_id)
    url = store.settings.url

    for point in ("before commit", "begun", "between pictures", *(f"in {step}" for step in STEPS)):
        paths = os.pathsep.join([str(Path(erasure.__file__).parents[2]), str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", KILLED, url, str(tmp_path), ann.subject_id, point]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert ended.returncode == -signal.SIGKILL, (point, ended.stderr)
        if point == "before commit":
            assert store.known(ann.subject_id).subject_id == ann.subject_id
            assert _table(store, erasure_request) == []
        else:
            with pytest.raises(NotFound):
                store.known(ann.subject_id)
    assert erasure.receipt(store, subject_id=ann.subject_id).completed_at is None

    done = erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")

    assert done.completed_at is not None
    assert set(done.receipts) == {"database", *STEPS}
    assert files_with(tmp_path, SECRET.encode(), hers) == []
    assert [Path(one["folder"]).name for one in done.releases] == ["policy", "reward"]
    epoch = next(row.value for row in _table(store, store_state) if row.name == "erasure_epoch")
    assert epoch == 1


def test_the_command_erases_and_says_so(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vca.cli_feedback import app

    url = f"sqlite:///{tmp_path}/store.sqlite"
    store = open_store(url, tmp_path)
    told_everywhere(store, store.person("local"))
    sets = [f"feedback.{key}={value}" for key, value in store.settings.model_dump(mode="json").items() if key in KEYS]
    sets += [f"feedback.features.folder={tmp_path}/features"]
    options = [part for one in sets for part in ("--set", one)] + ["--runs", str(tmp_path / "runs")]

    answer = CliRunner().invoke(app, ["erase", "--identity", "local", *options])

    assert answer.exit_code == 0, answer.output
    assert "erased, request" in answer.output
    assert CliRunner().invoke(app, ["erase", *options]).output == "0 interrupted erasures finished\n"
    assert isinstance(CliRunner().invoke(app, ["erase", "--identity", "local", *options]).exception, NotFound)
    assert _table(store, consent_event) == []


KEYS = ("url", "objects", "key", "snapshots")


def rows(store: Store, statement: str) -> list[object]:
    with store.database.reading() as connection:
        return list(connection.execute(sa.text(statement)).scalars())


def _table(store: Store, table: sa.Table) -> list[sa.Row]:
    with store.database.reading() as connection:
        return list(connection.execute(sa.select(table)))


def _auth(store: Store) -> str:
    return store.vault.hmac("identity ann")


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _digest_of(store: Store, person: Person, candidate_id: str) -> str:
    found = dialogues.picture(store, person, candidate_id)
    assert found is not None
    return found
